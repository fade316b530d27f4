package web

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
)

type sample struct {
	Name   string            `json:"name"`
	Count  int               `json:"count"`
	Flag   bool              `json:"flag"`
	List   []string          `json:"list"`
	Sub    struct{ A int }   `json:"sub"`
	Users  map[id.UserID]int `json:"users"`
	Power  *int64            `json:"power"`
	Detail jsontext.Value    `json:"detail"`
}

func TestReadJSON(t *testing.T) {
	srv := newServer(t, Config{}, []Route{
		{Pattern: "POST /strict", Handler: func(w http.ResponseWriter, r *http.Request) error {
			v, err := ReadJSON[sample](r)
			if err != nil {
				return err
			}
			return WriteJSON(w, v)
		}},
		{Pattern: "POST /optional", Handler: func(w http.ResponseWriter, r *http.Request) error {
			v, err := ReadOptionalJSON[sample](r)
			if err != nil {
				return err
			}
			return WriteJSON(w, v)
		}},
		{Pattern: "POST /raw", Handler: func(w http.ResponseWriter, r *http.Request) error {
			b, err := ReadRawObject(r)
			if err != nil {
				return err
			}
			return WriteRaw(w, b)
		}},
	})
	nest := func(n int) string { return `{"detail":` + strings.Repeat("[", n) + strings.Repeat("]", n) + "}" }
	for _, tc := range []struct {
		name, path, body string
		errcode          string
		says             string
	}{
		{"object", "/strict", `{"name":"x","count":3}`, "", ""},
		{"unknown name", "/strict", `{"other":1}`, "", ""},
		{"names are case-sensitive", "/strict", `{"NAME":5}`, "", ""},
		{"null member", "/strict", `{"name":null,"list":null,"power":null}`, "", ""},
		{"white space", "/strict", " \r\n\t{} \n", "", ""},
		{"empty", "/strict", ``, "M_NOT_JSON", "empty"},
		{"blank", "/strict", "  ", "M_NOT_JSON", ""},
		{"broken", "/strict", `{`, "M_NOT_JSON", ""},
		{"no JSON", "/strict", `hello`, "M_NOT_JSON", ""},
		{"two values", "/strict", `{}{}`, "M_NOT_JSON", ""},
		{"trailing comma", "/strict", `{"name":"x",}`, "M_NOT_JSON", ""},
		{"byte order mark", "/strict", "\xef\xbb\xbf{}", "M_NOT_JSON", ""},
		{"NaN", "/strict", `{"count":NaN}`, "M_NOT_JSON", ""},
		{"wrong type before broken text", "/strict", `{"name":5,"count"`, "M_NOT_JSON", ""},
		{"array", "/strict", `[]`, "M_BAD_JSON", "object"},
		{"null", "/strict", `null`, "M_BAD_JSON", "object"},
		{"string", "/strict", `"x"`, "M_BAD_JSON", "object"},
		{"number", "/strict", `5`, "M_BAD_JSON", "object"},
		{"wrong string", "/strict", `{"name":5}`, "M_BAD_JSON", "'name' must be a string"},
		{"wrong number", "/strict", `{"count":"5"}`, "M_BAD_JSON", "'count' must be an integer"},
		{"fraction", "/strict", `{"count":1.5}`, "M_BAD_JSON", "'count' must be an integer"},
		{"too large a number", "/strict", `{"count":1e400}`, "M_BAD_JSON", "'count'"},
		{"overflow", "/strict", `{"power":9223372036854775808}`, "M_BAD_JSON", "'power'"},
		{"wrong boolean", "/strict", `{"flag":1}`, "M_BAD_JSON", "'flag' must be true or false"},
		{"wrong list", "/strict", `{"list":{}}`, "M_BAD_JSON", "'list' must be an array"},
		{"wrong element", "/strict", `{"list":["a",1]}`, "M_BAD_JSON", "'list.1' must be a string"},
		{"wrong object", "/strict", `{"sub":[]}`, "M_BAD_JSON", "'sub' must be an object"},
		{"wrong map value", "/strict", `{"users":{"@a:b":"x"}}`, "M_BAD_JSON", "users.@a:b"},
		{"duplicate", "/strict", `{"name":"a","name":"b"}`, "M_BAD_JSON", "'name' twice"},
		{"duplicate in unknown", "/strict", `{"zzz":{"a":1,"a":2}}`, "M_BAD_JSON", "'zzz.a' twice"},
		{"duplicate by escape", "/strict", `{"name":"a","n\u0061me":"b"}`, "M_BAD_JSON", "twice"},
		{"bad UTF-8", "/strict", "{\"name\":\"\xff\"}", "M_NOT_JSON", "UTF-8"},
		{"bad UTF-8 in a name", "/strict", "{\"\xc3\x28\":1}", "M_NOT_JSON", ""},
		{"lone surrogate", "/strict", `{"name":"\ud800"}`, "M_NOT_JSON", ""},
		{"control character", "/strict", "{\"name\":\"\n\"}", "M_NOT_JSON", ""},
		{"deep enough", "/strict", nest(maxDepth - 1), "", ""},
		{"too deep", "/strict", nest(maxDepth), "M_BAD_JSON", "deeper"},
		{"far too deep", "/strict", strings.Repeat("[", 500_000), "M_BAD_JSON", "deeper"},
		{"brackets in text", "/strict", `{"name":"` + strings.Repeat("[", 500) + `\"` + strings.Repeat("{", 500) + `"}`, "", ""},
		{"too large", "/strict", `{"name":"` + strings.Repeat("x", MaxBody) + `"}`, "M_TOO_LARGE", ""},
		{"optional empty", "/optional", ``, "", ""},
		{"optional blank", "/optional", ` `, "", ""},
		{"optional wrong", "/optional", `[]`, "M_BAD_JSON", ""},
		{"raw", "/raw", `{"a" : [1, 2.5e3]}`, "", ""},
		{"raw duplicate", "/raw", `{"a":{"b":1,"b":2}}`, "M_BAD_JSON", ""},
		{"raw bad UTF-8", "/raw", "{\"a\":\"\xff\"}", "M_NOT_JSON", ""},
		{"raw array", "/raw", `[]`, "M_BAD_JSON", ""},
		{"raw deep", "/raw", nest(maxDepth), "M_BAD_JSON", ""},
		{"raw empty", "/raw", ``, "M_NOT_JSON", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := call(t, srv, "POST", tc.path, tc.body)
			if got.errcode() != tc.errcode || !strings.Contains(got.body, tc.says) {
				t.Errorf("got %d %.300s, want %s %s", got.StatusCode, got.body, tc.errcode, tc.says)
			}
			want := map[string]int{"": 200, "M_NOT_JSON": 400, "M_BAD_JSON": 400, "M_TOO_LARGE": 413}[tc.errcode]
			if got.StatusCode != want {
				t.Errorf("status %d, want %d", got.StatusCode, want)
			}
			if tc.errcode == "" && tc.path == "/raw" && got.body != tc.body {
				t.Errorf("raw body changed to %s", got.body)
			}
		})
	}
}

// TestReadBodyChunked sends bodies whose length is not announced.
func TestReadBodyChunked(t *testing.T) {
	for _, tc := range []struct {
		size    int
		errcode string
	}{{100, ""}, {MaxBody - 20, ""}, {MaxBody + 1, "M_TOO_LARGE"}} {
		r := httptest.NewRequest("POST", "/", strings.NewReader(`{"name":"`+strings.Repeat("x", tc.size)+`"}`))
		r.ContentLength = -1
		_, err := ReadJSON[sample](r)
		if e := mxerr.As(err); tc.errcode == "" && err != nil || tc.errcode != "" && (e == nil || e.Code != tc.errcode) {
			t.Errorf("%d bytes: %v", tc.size, err)
		}
	}
	r := httptest.NewRequest("POST", "/", strings.NewReader(`{}`))
	r.ContentLength = 10 // the client hangs up early
	if _, err := ReadJSON[sample](r); !mxerr.Is(err, "M_NOT_JSON") {
		t.Errorf("short body: %v", err)
	}
}

func TestWriteJSON(t *testing.T) {
	w := httptest.NewRecorder()
	v := struct {
		List  []string          `json:"list"`
		Map   map[string]string `json:"map"`
		Zero  int               `json:"zero,omitempty"`
		False bool              `json:"false,omitempty"`
		HTML  string            `json:"html"`
		Bad   string            `json:"bad"`
	}{HTML: "<a&b>", Bad: "a\xffb"}
	if err := WriteJSONStatus(w, 201, v); err != nil {
		t.Fatal(err)
	}
	want := `{"list":[],"map":{},"html":"<a&b>","bad":"a` + "\ufffd" + `b"}`
	if w.Code != 201 || w.Body.String() != want || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("got %d %s, want %s", w.Code, w.Body, want)
	}
}

func TestQuery(t *testing.T) {
	r := httptest.NewRequest("GET", "/?limit=5&neg=-3&huge=99999999999999999999&bad=x&on=true&off=false&odd=1&via=a&via=b%2Fc&n%61me=a+b&empty=&broken=%zz&utf=%ff", nil)
	for _, tc := range []struct {
		name    string
		want    int
		refused bool
	}{{"limit", 5, false}, {"absent", 10, false}, {"empty", 10, false}, {"huge", 100, false}, {"neg", 0, true}, {"bad", 0, true}} {
		n, err := QueryInt(r, tc.name, 10, 1, 100)
		if n != tc.want || tc.refused != mxerr.Is(err, "M_INVALID_PARAM") {
			t.Errorf("%s: %d, %v", tc.name, n, err)
		}
	}
	for _, tc := range []struct {
		name          string
		want, refused bool
	}{{"on", true, false}, {"off", false, false}, {"absent", true, false}, {"odd", false, true}} {
		b, err := QueryBool(r, tc.name, true)
		if b != tc.want || tc.refused != mxerr.Is(err, "M_INVALID_PARAM") {
			t.Errorf("%s: %v, %v", tc.name, b, err)
		}
	}
	if got := QueryString(r, "name"); got != "a b" {
		t.Errorf("name is %q", got)
	}
	if got := QueryStrings(r, "via"); len(got) != 2 || got[1] != "b/c" {
		t.Errorf("via is %q", got)
	}
	for _, name := range []string{"broken", "utf", "nothing"} {
		if v, ok := QueryLookup(r, name); ok {
			t.Errorf("%s is %q", name, v)
		}
	}
}
