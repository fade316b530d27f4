package hstest

import (
	"net/http"
	"strings"
	"sync"
	"testing"
)

// spec loads the specification; where it is absent these tests have nothing to test with.
func spec(t *testing.T) *Spec {
	t.Helper()
	s, err := LoadSpec("")
	if err != nil {
		t.Fatal(err)
	}
	if s == nil {
		t.Skip("no copy of the Matrix specification: set MATRIX_SPEC")
	}
	return s
}

const goodSync = `{"next_batch":"s1","rooms":{"join":{"!a:b":{"timeline":{"events":[
 {"type":"m.room.message","sender":"@a:b","event_id":"$x","origin_server_ts":1,"content":{"body":"x"}}],
 "limited":false,"prev_batch":"x"},"state":{"events":[]},
 "unread_notifications":{"highlight_count":0,"notification_count":1}}}}}`

func TestSpecCheck(t *testing.T) {
	s := spec(t)
	const v3 = "/_matrix/client/v3"
	for _, tc := range []struct {
		name, method, target string
		status               int
		contentType, body    string
		want                 string // part of the error; empty when the response is right
	}{
		{"sync", "GET", v3 + "/sync?since=s0", 200, "application/json", goodSync, ""},
		{"charset", "GET", v3 + "/sync", 200, "application/json; charset=utf-8", goodSync, ""},
		{"string for a count", "GET", v3 + "/sync", 200, "application/json",
			strings.Replace(goodSync, `_count":1`, `_count":"1"`, 1), "notification_count"},
		{"number for an event id", "GET", v3 + "/sync", 200, "application/json",
			strings.Replace(goodSync, `"$x"`, `7`, 1), "events/0/event_id"},
		{"event id of a wrong shape", "GET", v3 + "/sync", 200, "application/json",
			strings.Replace(goodSync, `"$x"`, `"x"`, 1), "events/0/event_id"},
		{"missing sender", "GET", v3 + "/sync", 200, "application/json",
			strings.Replace(goodSync, `"sender":"@a:b",`, ``, 1), "sender"},
		{"no next_batch", "GET", v3 + "/sync", 200, "application/json", `{}`, "next_batch"},
		{"duplicate key", "GET", v3 + "/sync", 200, "application/json", `{"next_batch":"a","next_batch":"b"}`, "duplicate"},
		{"not an object", "GET", v3 + "/sync", 200, "application/json", `[]`, "want object"},
		{"empty body", "GET", v3 + "/sync", 200, "application/json", ``, "no strict JSON"},
		{"no content type", "GET", v3 + "/sync", 200, "", goodSync, "content type"},
		{"text", "GET", v3 + "/sync", 200, "text/plain", goodSync, "content type"},
		{"status that is not listed", "GET", v3 + "/sync", 201, "application/json", goodSync, "no such status"},

		{"error", "GET", v3 + "/sync", 401, "application/json", `{"errcode":"M_UNKNOWN_TOKEN","error":"no"}`, ""},
		{"error without code", "GET", v3 + "/sync", 403, "application/json", `{"error":"no"}`, "errcode"},
		{"error without text", "GET", v3 + "/sync", 403, "application/json", `{"errcode":"M_FORBIDDEN"}`, "no error message"},
		{"error code of a wrong type", "GET", v3 + "/sync", 403, "application/json", `{"errcode":3,"error":"no"}`, "errcode"},
		{"error as text", "GET", v3 + "/sync", 500, "text/plain", `oops`, "content type"},
		{"error where none is listed", "GET", v3 + "/sync", 418, "application/json", `{"errcode":"M_UNKNOWN","error":"tea"}`, ""},
		{"limit", "POST", v3 + "/login", 429, "application/json", `{"errcode":"M_LIMIT_EXCEEDED","error":"x","retry_after_ms":5}`, ""},
		{"limit, wrong time", "POST", v3 + "/login", 429, "application/json",
			`{"errcode":"M_LIMIT_EXCEEDED","error":"x","retry_after_ms":"5"}`, "retry_after_ms"},

		{"interactive auth", "POST", v3 + "/delete_devices", 401, "application/json", `{"flows":[{"stages":["m.login.password"]}],"session":"s"}`, ""},
		{"interactive auth, token missing", "POST", v3 + "/delete_devices", 401, "application/json", `{"errcode":"M_MISSING_TOKEN","error":"x"}`, ""},
		{"interactive auth that is not listed", "POST", v3 + "/keys/device_signing/upload", 401, "application/json", `{"flows":[{"stages":["m.login.password"]}],"session":"s"}`, ""},
		{"interactive auth that is not listed, no flows", "POST", v3 + "/keys/device_signing/upload", 401, "application/json", `{"session":"s"}`, "errcode"},
		{"no TURN server", "GET", v3 + "/voip/turnServer", 200, "application/json", `{}`, ""},
		{"half a TURN server", "GET", v3 + "/voip/turnServer", 200, "application/json", `{"uris":[]}`, "username"},
		{"interactive auth, no stages", "POST", v3 + "/delete_devices", 401, "application/json", `{"flows":[{}],"session":"s"}`, "stages"},

		{"state content", "GET", v3 + "/rooms/!a:b/state/m.room.name/", 200, "application/json", `{"name":"x"}`, ""},
		{"state content, no slash", "GET", v3 + "/rooms/!a:b/state/m.room.name", 200, "application/json", `{"name":"x"}`, ""},
		{"state event instead of content", "GET", v3 + "/rooms/!a:b/state/m.room.name?format=event", 200, "application/json", `{"name":"x"}`, "missing"},
		{"state, not an object", "GET", v3 + "/rooms/!a:b/state/m.room.name/", 200, "application/json", `"x"`, "object"},
		{"escaped slash in a parameter", "PUT", v3 + "/rooms/!a:b/send/m.room.message/a%2Fb", 200, "application/json", `{"event_id":"$x"}`, ""},
		{"wrong event id", "PUT", v3 + "/rooms/!a:b/send/m.room.message/1", 200, "application/json", `{"event_id":"x"}`, "event_id"},
		{"relations 404", "GET", "/_matrix/client/v1/rooms/!a:b/relations/$e", 404, "application/json", `{"errcode":"M_NOT_FOUND","error":"x"}`, ""},

		{"download", "GET", "/_matrix/client/v1/media/download/a/b", 200, "image/png", "\x89PNG", ""},
		{"range of a download", "GET", "/_matrix/client/v1/media/download/a/b", 206, "image/png", "PNG", ""},
		{"thumbnail", "GET", "/_matrix/client/v1/media/thumbnail/a/b", 200, "image/png", "\x89PNG", ""},
		{"thumbnail as text", "GET", "/_matrix/client/v1/media/thumbnail/a/b", 200, "text/html", "<b>", "content type"},
		{"download too early", "GET", "/_matrix/client/v1/media/download/a/b", 504, "application/json", `{"errcode":"M_NOT_YET_UPLOADED","error":"x"}`, ""},

		{"fake endpoint", "GET", v3 + "/nothing", 200, "application/json", `{}`, "no such endpoint"},
		{"unknown endpoint", "GET", v3 + "/nothing", 404, "application/json", `{"errcode":"M_UNRECOGNIZED","error":"x"}`, ""},
		{"unknown endpoint as text", "GET", v3 + "/nothing", 404, "text/plain", `404`, "content type"},
		{"unstable endpoint", "POST", "/_matrix/client/unstable/x/y", 200, "application/json", `{}`, ""},
		{"wrong method", "DELETE", v3 + "/sync", 200, "application/json", `{}`, "no such endpoint"},
		{"another API", "GET", "/health", 200, "text/plain", `ok`, ""},
		{"preflight", "OPTIONS", v3 + "/sync", 200, "", ``, ""},
		{"head", "HEAD", "/_matrix/client/v1/media/download/a/b", 404, "application/json", ``, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := http.Header{}
			if tc.contentType != "" {
				h.Set("Content-Type", tc.contentType)
			}
			err := s.Check(tc.method, tc.target, tc.status, h, []byte(tc.body))
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("a right response is refused: %v", err)
			case tc.want != "" && err == nil:
				t.Errorf("accepted, want an error with %q", tc.want)
			case tc.want != "" && !strings.Contains(err.Error(), tc.want):
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

func TestSpecFind(t *testing.T) {
	s := spec(t)
	for target, want := range map[string]string{
		"/_matrix/client/v3/rooms/!a/state":                       "getRoomState",
		"/_matrix/client/v3/rooms/!a/state/m.room.name":           "getRoomStateWithKey",
		"/_matrix/client/v3/pushrules/":                           "getPushRules",
		"/_matrix/client/v1/rooms/!a/relations/$e/m.annotation":   "getRelatingEventsWithRelType",
		"/_matrix/client/v1/media/download/a/b/c.png?timeout_ms=": "getContentOverrideNameAuthed",
		"/.well-known/matrix/client":                              "getWellknown",
		"/_matrix/client/versions":                                "getVersions",
		"/_matrix/client/v3/rooms//state":                         "",
	} {
		if op, ok := s.Find("GET", target); op.OperationID != want || ok != (want != "") {
			t.Errorf("%s: got %q, want %q", target, op.OperationID, want)
		}
	}
}

// Every schema of the specification compiles, so that no check is left out unseen.
func TestSpecSchemasCompile(t *testing.T) {
	s := spec(t)
	var n int
	for _, routes := range s.routes {
		for _, r := range routes {
			for status, resp := range r.responses {
				if resp.schema == "" {
					continue
				}
				n++
				if _, err := s.schemaAt(resp.schema); err != nil {
					t.Errorf("%s %s %d: %v", r.Method, r.Path, status, err)
				}
			}
		}
	}
	if ops := len(s.Operations()); ops < 150 || n < 300 {
		t.Errorf("only %d operations and %d schemas: part of the specification was not read", ops, n)
	}
}

func TestSpecConcurrent(t *testing.T) {
	s := spec(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			again, err := LoadSpec("")
			if err != nil || again != s {
				t.Errorf("loaded twice: %p and %p, %v", s, again, err)
			}
			h := http.Header{"Content-Type": {"application/json"}}
			if err := s.Check("GET", "/_matrix/client/v3/sync", 200, h, []byte(goodSync)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestSpecAbsent(t *testing.T) {
	t.Setenv("MATRIX_SPEC", t.TempDir())
	if s, err := LoadSpec(""); err == nil {
		t.Errorf("an empty folder gives %v, want an error that names it", s)
	}
	var none *Spec
	if err := none.Check("GET", "/_matrix/client/v3/sync", 200, nil, nil); err != nil {
		t.Errorf("no specification, yet: %v", err)
	}
	if ops := none.Operations(); ops != nil {
		t.Errorf("no specification, yet %d operations", len(ops))
	}
}
