"""Checks a SCIM server by scim2-tester: scim2-tester.py URL TOKEN. Prints what is wrong; the exit code is 1 if anything is."""

import datetime
import sys

import httpx2
from scim2_client.engines.httpx2 import SyncSCIMClient
from scim2_tester import Status, check_server, filling

examples = filling.get_random_example_value


def random_example(path):
    # scim2-tester 0.5 makes no random dates: it fills in text, which its own models refuse
    binding = path.resolve()
    if binding is not None and binding.target_type is datetime.datetime:
        return datetime.datetime(2020, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
    return examples(path)


filling.get_random_example_value = random_example

url, token = sys.argv[1:3]
client = httpx2.Client(base_url=url, headers={"Authorization": "Bearer " + token}, timeout=30)
results = check_server(SyncSCIMClient(client))
count = {}
for r in results:
    count[r.status.name] = count.get(r.status.name, 0) + 1
    if r.status != Status.SUCCESS:
        print(r.status.name, r.title, r.resource_type, r.reason, "" if r.status == Status.SKIPPED else str(r.data)[:1500])
print(*(f"{name}={n}" for name, n in sorted(count.items())))
wrong = [r for r in results if r.status not in (Status.SUCCESS, Status.SKIPPED)]
sys.exit(1 if wrong or count.get("SUCCESS", 0) < 100 else 0)
