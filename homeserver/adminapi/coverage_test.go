package adminapi

import (
	"context"
	_ "embed"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"
)

var update = flag.Bool("update", false, "write docs/admin-api.md anew")

// synapse is what Synapse documents of its administration API, in its own order of chapters; a note says why something is
// not here.
var synapse = []struct{ method, path, note string }{
	{"POST", "/v1/register", "clientapi"}, {"GET", "/v1/register", "clientapi"},
	{"GET", "/v2/users", ""}, {"GET", "/v3/users", ""}, {"GET", "/v2/users/{userId}", ""}, {"PUT", "/v2/users/{userId}", ""},
	{"GET", "/v1/whois/{userId}", ""}, {"POST", "/v1/deactivate/{userId}", ""}, {"PUT", "/v1/suspend/{userId}", ""},
	{"POST", "/v1/reset_password/{userId}", ""}, {"GET", "/v1/users/{userId}/admin", ""}, {"PUT", "/v1/users/{userId}/admin", ""},
	{"GET", "/v1/users/{userId}/joined_rooms", ""}, {"GET", "/v1/users/{userId}/memberships", ""}, {"GET", "/v1/users/{userId}/accountdata", ""},
	{"GET", "/v1/users/{userId}/media", ""}, {"DELETE", "/v1/users/{userId}/media", ""}, {"POST", "/v1/users/{userId}/login", ""},
	{"POST", "/v1/users/{userId}/_allow_cross_signing_replacement_without_uia", ""},
	{"GET", "/v2/users/{userId}/devices", ""}, {"POST", "/v2/users/{userId}/devices", ""}, {"POST", "/v2/users/{userId}/delete_devices", ""},
	{"GET", "/v2/users/{userId}/devices/{deviceId}", ""}, {"PUT", "/v2/users/{userId}/devices/{deviceId}", ""}, {"DELETE", "/v2/users/{userId}/devices/{deviceId}", ""},
	{"GET", "/v1/users/{userId}/pushers", ""},
	{"POST", "/v1/users/{userId}/shadow_ban", "an account is suspended instead, and is told so"}, {"DELETE", "/v1/users/{userId}/shadow_ban", "as above"},
	{"GET", "/v1/users/{userId}/override_ratelimit", ""}, {"POST", "/v1/users/{userId}/override_ratelimit", ""},
	{"DELETE", "/v1/users/{userId}/override_ratelimit", ""},
	{"GET", "/v1/users/{userId}/sent_invite_count", "not kept"}, {"GET", "/v1/users/{userId}/cumulative_joined_room_count", "not kept"},
	{"GET", "/v1/username_available", ""}, {"GET", "/v1/threepid/{medium}/users/{address}", ""},
	{"GET", "/v1/auth_providers/{provider}/users/{externalId}", ""},
	{"POST", "/v1/user/{userId}/redact", ""}, {"GET", "/v1/user/redact_status/{redactId}", ""},
	{"GET", "/v1/rooms", ""}, {"GET", "/v1/rooms/{roomId}", ""}, {"GET", "/v1/rooms/{roomId}/members", ""}, {"GET", "/v1/rooms/{roomId}/state", ""},
	{"GET", "/v1/rooms/{roomId}/messages", ""}, {"GET", "/v1/rooms/{roomId}/timestamp_to_event", ""}, {"GET", "/v1/rooms/{roomId}/context/{eventId}", ""},
	{"GET", "/v1/rooms/{roomId}/hierarchy", "clientapi"},
	{"GET", "/v1/rooms/{roomId}/block", ""}, {"PUT", "/v1/rooms/{roomId}/block", ""}, {"DELETE", "/v1/rooms/{roomId}", ""}, {"DELETE", "/v2/rooms/{roomId}", ""},
	{"GET", "/v2/rooms/{roomId}/delete_status", ""}, {"GET", "/v2/rooms/delete_status/{deleteId}", ""}, {"POST", "/v1/rooms/{roomId}/make_room_admin", ""},
	{"GET", "/v1/rooms/{roomId}/forward_extremities", ""}, {"DELETE", "/v1/rooms/{roomId}/forward_extremities", "the next event joins them"},
	{"POST", "/v1/join/{roomId}", ""}, {"GET", "/v1/fetch_event/{eventId}", ""},
	{"POST", "/v1/purge_history/{roomId}", ""}, {"POST", "/v1/purge_history/{roomId}/{eventId}", ""}, {"GET", "/v1/purge_history_status/{purgeId}", ""},
	{"GET", "/v1/room/{roomId}/media", ""}, {"POST", "/v1/room/{roomId}/media/quarantine", ""}, {"POST", "/v1/user/{userId}/media/quarantine", ""},
	{"POST", "/v1/media/quarantine/{serverName}/{mediaId}", ""}, {"POST", "/v1/media/unquarantine/{serverName}/{mediaId}", ""},
	{"POST", "/v1/media/protect/{mediaId}", ""}, {"POST", "/v1/media/unprotect/{mediaId}", ""}, {"GET", "/v1/media/{serverName}/{mediaId}", ""},
	{"DELETE", "/v1/media/{serverName}/{mediaId}", ""}, {"POST", "/v1/media/delete", ""}, {"POST", "/v1/media/{serverName}/delete", ""}, {"POST", "/v1/purge_media_cache", ""},
	{"GET", "/v1/media/quarantine_changes", "the audit log has them"},
	{"GET", "/v1/registration_tokens", ""}, {"GET", "/v1/registration_tokens/{token}", ""}, {"POST", "/v1/registration_tokens/new", ""},
	{"PUT", "/v1/registration_tokens/{token}", ""}, {"DELETE", "/v1/registration_tokens/{token}", ""},
	{"GET", "/v1/event_reports", ""}, {"GET", "/v1/event_reports/{reportId}", ""}, {"DELETE", "/v1/event_reports/{reportId}", ""},
	{"GET", "/v1/user_reports", ""}, {"GET", "/v1/user_reports/{reportId}", ""}, {"DELETE", "/v1/user_reports/{reportId}", ""},
	{"GET", "/v1/statistics/users/media", ""}, {"GET", "/v1/statistics/database/rooms", ""},
	{"POST", "/v1/send_server_notice", ""}, {"PUT", "/v1/send_server_notice/{txnId}", ""},
	{"GET", "/v1/federation/destinations", ""}, {"GET", "/v1/federation/destinations/{destination}", "there is no federation yet"},
	{"GET", "/v1/federation/destinations/{destination}/rooms", "as above"}, {"POST", "/v1/federation/destinations/{destination}/reset_connection", "as above"},
	{"GET", "/v1/background_updates/status", ""}, {"GET", "/v1/background_updates/enabled", "the database is brought up to date before the server answers"},
	{"POST", "/v1/background_updates/enabled", "as above"}, {"POST", "/v1/background_updates/start_job", "as above"},
	{"GET", "/v1/server_version", ""}, {"GET", "/v1/experimental_features/{userId}", ""}, {"PUT", "/v1/experimental_features/{userId}", ""},
	{"GET", "/v1/scheduled_tasks", ""}, {"POST", "/v1/account_validity/validity", "accounts end with their person's entry in the directory, or are locked"},
}

// tools says which programs were run against it.
//
//go:embed testdata/tools.md
var tools string

// TestCoverage keeps the table of the documentation true to the routes.
func TestCoverage(t *testing.T) {
	const file = "../../docs/admin-api.md"
	a := New(Deps{Notice: func(context.Context, id.UserID, string, *string, []byte, string) (id.EventID, error) { return "", nil }})
	var served []string
	for _, rt := range a.Routes() {
		served = append(served, strings.Replace(rt.Pattern, "/_synapse/admin", "", 1))
	}
	var b strings.Builder
	b.WriteString("# Synapse's administration API\n\nWhat of it is here, below `/_synapse/admin`; made by `go test ./homeserver/adminapi -run TestCoverage -update`. " +
		"It takes the access token of\nan administrator; every act stands in the audit log.\n\n" + tools + "\n## Endpoints\n\n| Endpoint | Here |\n|---|---|\n")
	for _, e := range synapse {
		key := e.method + " " + e.path
		here := slices.Contains(served, key)
		switch {
		case here && e.note != "":
			t.Errorf("%s is served, but noted as %q", key, e.note)
		case !here && e.note == "":
			t.Errorf("%s is not served", key)
		}
		mark := "yes"
		if e.note != "" && e.note != "clientapi" {
			mark = "no: " + e.note
		}
		fmt.Fprintf(&b, "| `%s` | %s |\n", key, mark)
		served = slices.DeleteFunc(served, func(s string) bool { return s == key })
	}
	for _, s := range served {
		t.Errorf("%s is served, but not in the table", s)
	}
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != b.String() {
		t.Errorf("%s is not up to date: run this test with -update (%v)", file, err)
	}
}
