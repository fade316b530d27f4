package search_test

import (
	"bytes"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/testkit"
)

// TestClusterRestart has a cluster of its own: its process is killed while people talk and started again on what it has on disk;
// then it is stopped, wiped and started again.
func TestClusterRestart(t *testing.T) {
	for _, x := range []struct{ engine, data string }{{"elasticsearch", "data"}, {"opensearch", "base"}} {
		t.Run(x.engine, func(t *testing.T) { restarted(t, x.engine, x.data) })
	}
}

func restarted(t *testing.T, engine, data string) {
	cluster(t, engine) // where there is one, another can be started
	dir, err := os.MkdirTemp("", "moothall-"+engine+"-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // it does not run as root
		t.Fatal(err)
	}
	script := func(command, port string) string {
		t.Helper()
		c := exec.Command("../scripts/partners/"+engine, command, dir)
		c.Env = append(os.Environ(), strings.ToUpper(engine)+"_PORT="+port, "ES_JAVA_OPTS=-Xms256m -Xmx256m -XX:TieredStopAtLevel=1")
		var problem bytes.Buffer
		c.Stderr = &problem
		out, err := c.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s", command, err, problem.String())
		}
		return strings.TrimSpace(string(out))
	}
	t.Cleanup(func() {
		script("stop", "")
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	address := script("start", "")
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	hs := hstest.Start(t, func(c *homeserver.Config) {
		c.Search.Elasticsearch.URLs, c.Search.Elasticsearch.Prefix = []string{address}, prefix()
	})
	alice := hs.User("alice")
	room := alice.CreateRoom("private_chat")
	ready(t, alice)
	var want []string
	say := func(n int) {
		for range n {
			want = append(want, string(alice.Text(room, fmt.Sprintf("marmot %d", len(want)))))
		}
	}
	search := func() hstest.Response {
		return alice.Do(t, "POST", `{"search_categories":{"room_events":{"search_term":"marmot","filter":{"limit":100}}}}`, "/v3/search")
	}
	all := func() bool {
		r := search()
		return r.Status == 200 && strings.Count(string(r.Body), `"rank"`) == len(want)
	}
	say(10)
	finds(t, alice, "marmot", slices.Clone(want)...)

	raw, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	say(20)
	if r := search(); r.Status != 503 {
		t.Errorf("after the cluster was killed: %d", r.Status)
	}
	script("start", u.Port())
	testkit.Eventually(t, "what was said before and meanwhile is found after the cluster was killed", all)

	script("stop", "")
	if err := os.RemoveAll(filepath.Join(dir, data)); err != nil {
		t.Fatal(err)
	}
	say(5)
	script("start", u.Port())
	testkit.Eventually(t, "everything is found after the cluster was wiped", all)
	if n := ask(t, alice, "marmot", "", "").Count; n != len(want) {
		t.Errorf("the index counts %d, want %d", n, len(want))
	}
}
