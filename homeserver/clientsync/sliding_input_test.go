package clientsync

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

func read4186(body string) error {
	b, err := web.DecodeObject[body4186]([]byte(body))
	if err == nil {
		_, err = b.request()
	}
	return err
}

func readOld(body string) error {
	b, err := web.DecodeObject[body3575]([]byte(body))
	if err == nil {
		_, err = b.request("@me:test")
	}
	return err
}

// TestSlidingBadInput walks both request bodies with wrong values in every place.
func TestSlidingBadInput(t *testing.T) {
	list := func(s string) string { return `{"lists":{"a":{` + s + `}}}` }
	filter := func(s string) string {
		return list(`"timeline_limit":1,"required_state":STATE,"filters":{` + s + `}`)
	}
	many := func(n int, format string) string {
		var out []string
		for i := range n {
			out = append(out, fmt.Sprintf(format, i))
		}
		return strings.Join(out, ",")
	}
	ok := `"timeline_limit":1,"required_state":STATE`
	for _, tc := range []struct{ body, old, accepted string }{
		{`{}`, "", ""},
		{`{"lists":null,"room_subscriptions":null,"extensions":null,"conn_id":null}`, "", ""},
		{`{"no_such":5,"extensions":{"no_such":5}}`, "", ""},
		{`[]`, "M_BAD_JSON", "M_BAD_JSON"},
		{`{"conn_id":5}`, "M_BAD_JSON", "M_BAD_JSON"},
		{`{"conn_id":"` + strings.Repeat("x", 256) + `"}`, "M_INVALID_PARAM", "M_INVALID_PARAM"},
		{`{"lists":[]}`, "M_BAD_JSON", "M_BAD_JSON"},
		{`{"lists":{"a":5}}`, "M_BAD_JSON", "M_BAD_JSON"},
		{`{"lists":{"a":null}}`, "M_BAD_JSON", "M_BAD_JSON"},
		{`{"lists":{` + many(101, `"l%d":{`+ok+`}`) + `}}`, "M_INVALID_PARAM", "M_INVALID_PARAM"},
		{`{"lists":{"` + strings.Repeat("x", 65) + `":{` + ok + `}}}`, "M_INVALID_PARAM", ""},
		{`{"lists":{"ä":{` + ok + `}}}`, "", "M_INVALID_PARAM"},
		{`{"lists":{"":{` + ok + `}}}`, "", "M_INVALID_PARAM"},
		{list(`"required_state":STATE`), "M_BAD_JSON", "M_BAD_JSON"},
		{list(`"timeline_limit":1`), "M_BAD_JSON", "M_BAD_JSON"},
		{list(`"timeline_limit":-1,"required_state":STATE`), "M_INVALID_PARAM", "M_INVALID_PARAM"},
		{list(`"timeline_limit":1001,"required_state":STATE`), "M_INVALID_PARAM", ""},
		{list(`"timeline_limit":"1","required_state":STATE`), "M_BAD_JSON", "M_BAD_JSON"},
		{list(`"timeline_limit":1.5,"required_state":STATE`), "M_BAD_JSON", "M_BAD_JSON"},
		{list(`"timeline_limit":99999999999999999999,"required_state":STATE`), "M_BAD_JSON", "M_BAD_JSON"},
		{list(`"timeline_limit":1,"required_state":5`), "M_BAD_JSON", "M_BAD_JSON"},
		{list(`"timeline_limit":1,"required_state":[["a"]]`), "M_BAD_JSON", "M_BAD_JSON"},
		{list(`"timeline_limit":1,"required_state":[["a","b","c"]]`), "M_BAD_JSON", "M_BAD_JSON"},
		{list(`"timeline_limit":1,"required_state":[[1,2]]`), "M_BAD_JSON", "M_BAD_JSON"},
		{list(`"timeline_limit":1,"required_state":[` + many(501, `["t%d",""]`) + `]`), "M_INVALID_PARAM", "M_BAD_JSON"},
		{list(`"timeline_limit":1,"required_state":{"include":5}`), "M_BAD_JSON", "M_BAD_JSON"},
		{list(`"timeline_limit":1,"required_state":{"include":[5]}`), "M_BAD_JSON", "M_BAD_JSON"},
		{list(`"timeline_limit":1,"required_state":{"include":[{"type":5}]}`), "M_BAD_JSON", "M_BAD_JSON"},
		{list(`"timeline_limit":1,"required_state":{"exclude":{}}`), "M_BAD_JSON", "M_BAD_JSON"},
		{list(`"timeline_limit":1,"required_state":{"lazy_members":"yes"}`), "M_BAD_JSON", "M_BAD_JSON"},
		{list(`"timeline_limit":1,"required_state":{"include":[` + many(501, `{"type":"t%d"}`) + `]}`), "M_BAD_JSON", "M_INVALID_PARAM"},
		{list(ok + `,"ranges":[[0,5],[7,9]],"range":[0,5]`), "", ""},
		{list(ok + `,"ranges":[[0]]`), "M_BAD_JSON", ""},
		{list(ok + `,"ranges":[0,1]`), "M_BAD_JSON", ""},
		{list(ok + `,"ranges":[["0","1"]]`), "M_BAD_JSON", ""},
		{list(ok + `,"ranges":[[-1,1]]`), "M_INVALID_PARAM", ""},
		{list(ok + `,"ranges":[[5,1]]`), "M_INVALID_PARAM", ""},
		{list(ok + `,"slow_get_all_rooms":1`), "M_BAD_JSON", ""},
		{list(ok + `,"range":[0]`), "", "M_BAD_JSON"},
		{list(ok + `,"range":[0,1,2]`), "", "M_BAD_JSON"},
		{list(ok + `,"range":[[0,1]]`), "", "M_BAD_JSON"},
		{list(ok + `,"range":[-5,1]`), "", "M_INVALID_PARAM"},
		{list(ok + `,"range":[5,1]`), "", "M_INVALID_PARAM"},
		{list(ok + `,"filters":5`), "M_BAD_JSON", "M_BAD_JSON"},
		{filter(`"is_dm":"yes"`), "M_BAD_JSON", "M_BAD_JSON"},
		{filter(`"is_encrypted":1`), "M_BAD_JSON", "M_BAD_JSON"},
		{filter(`"is_invite":1`), "M_BAD_JSON", "M_BAD_JSON"},
		{filter(`"is_invited":1`), "M_BAD_JSON", "M_BAD_JSON"},
		{filter(`"spaces":"!a:test"`), "M_BAD_JSON", "M_BAD_JSON"},
		{filter(`"spaces":[5]`), "M_BAD_JSON", "M_BAD_JSON"},
		{filter(`"spaces":[` + many(101, `"!%d:test"`) + `]`), "M_INVALID_PARAM", "M_INVALID_PARAM"},
		{filter(`"room_types":"m.space"`), "M_BAD_JSON", "M_BAD_JSON"},
		{filter(`"room_types":[5]`), "M_BAD_JSON", "M_BAD_JSON"},
		{filter(`"not_room_types":[true]`), "M_BAD_JSON", "M_BAD_JSON"},
		{filter(`"room_name_like":5`), "M_BAD_JSON", "M_BAD_JSON"},
		{filter(`"tags":{}`), "M_BAD_JSON", "M_BAD_JSON"},
		{filter(`"not_tags":[1]`), "M_BAD_JSON", "M_BAD_JSON"},
		{`{"room_subscriptions":[]}`, "M_BAD_JSON", "M_BAD_JSON"},
		{`{"room_subscriptions":{"!a:test":null}}`, "M_BAD_JSON", "M_BAD_JSON"},
		{`{"room_subscriptions":{"!a:test":{}}}`, "M_BAD_JSON", "M_BAD_JSON"},
		{`{"room_subscriptions":{"\u0000":{` + ok + `}}}`, "", ""},
		{`{"room_subscriptions":{` + many(101, `"!%d:test":{`+ok+`}`) + `}}`, "", "M_INVALID_PARAM"},
		{`{"room_subscriptions":{` + many(1001, `"!%d:test":{`+ok+`}`) + `}}`, "M_INVALID_PARAM", "M_INVALID_PARAM"},
		{`{"extensions":[]}`, "M_BAD_JSON", "M_BAD_JSON"},
		{`{"extensions":{"to_device":5}}`, "M_BAD_JSON", "M_BAD_JSON"},
		{`{"extensions":{"to_device":{"enabled":"yes"}}}`, "M_BAD_JSON", "M_BAD_JSON"},
		{`{"extensions":{"to_device":{"limit":0}}}`, "M_INVALID_PARAM", "M_INVALID_PARAM"},
		{`{"extensions":{"to_device":{"limit":"1"}}}`, "M_BAD_JSON", "M_BAD_JSON"},
		{`{"extensions":{"to_device":{"since":5}}}`, "M_BAD_JSON", "M_BAD_JSON"},
		{`{"extensions":{"e2ee":{"enabled":1}}}`, "M_BAD_JSON", "M_BAD_JSON"},
		{`{"extensions":{"account_data":{"lists":"*"}}}`, "M_BAD_JSON", "M_BAD_JSON"},
		{`{"extensions":{"receipts":{"rooms":[5]}}}`, "M_BAD_JSON", "M_BAD_JSON"},
		{`{"extensions":{"typing":[]}}`, "M_BAD_JSON", "M_BAD_JSON"},
		{`{"pos":5}`, "", "M_BAD_JSON"},
		{`{"timeout":"5"}`, "", "M_BAD_JSON"},
		{`{"timeout":-5}`, "", "M_INVALID_PARAM"},
		{`{"set_presence":"away"}`, "", "M_INVALID_PARAM"},
		{`{"set_presence":5}`, "", "M_BAD_JSON"},
	} {
		check := func(wire, state, want string, read func(string) error) {
			t.Helper()
			err := read(strings.ReplaceAll(tc.body, "STATE", state))
			got := ""
			if err != nil {
				if got = mxerr.As(err).Code; got == "" {
					t.Errorf("%s: %.200s: %v", wire, tc.body, err)
				}
			}
			if got != want {
				t.Errorf("%s: %.200s: got %q, want %q (%v)", wire, tc.body, got, want, err)
			}
		}
		check("MSC3575", `[]`, tc.old, readOld)
		check("MSC4186", `{}`, tc.accepted, read4186)
	}
}

func TestSlidingBadQuery(t *testing.T) {
	for query, want := range map[string]string{
		"timeout=x": "M_INVALID_PARAM", "timeout=-1": "M_INVALID_PARAM", "timeout=99999999999999999999": "", "set_presence=away": "M_INVALID_PARAM", "set_presence=offline": "",
	} {
		var got string
		mux, err := web.NewMux(web.Config{Authenticate: func(*http.Request, string) (*web.Identity, error) { return &web.Identity{UserID: "@a:test"}, nil }},
			[]web.Route{{Pattern: "POST /_matrix/x", Auth: web.User, Rate: web.RateNone, Handler: func(w http.ResponseWriter, r *http.Request) error {
				if _, err := read3575(r); err != nil {
					got = mxerr.As(err).Code
				}
				return web.WriteRaw(w, []byte("{}"))
			}}})
		if err != nil {
			t.Fatal(err)
		}
		req := httptest.NewRequest("POST", "/_matrix/x?"+query, strings.NewReader("{}"))
		req.Header.Set("Authorization", "Bearer x")
		mux.ServeHTTP(httptest.NewRecorder(), req)
		if got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
}

// FuzzSlidingRequest: whatever a client sends is refused by an error of the specification, or has a form that is known.
func FuzzSlidingRequest(f *testing.F) {
	for _, s := range []string{
		`{"lists":{"a":{"ranges":[[0,19]],"timeline_limit":1,"required_state":[["m.room.member","$LAZY"],["*","*"]],"filters":{"is_dm":true,"room_types":[null]}}}}`,
		`{"lists":{"a":{"range":[0,19],"timeline_limit":1,"required_state":{"include":[{}],"exclude":[{"type":"x"}],"lazy_members":true}}}}`,
		`{"conn_id":"x","room_subscriptions":{"!a:b":{"timeline_limit":5,"required_state":[]}},"extensions":{"to_device":{"enabled":true,"since":"1_2"}}}`,
	} {
		f.Add([]byte(s), "s1_1_2_2_abc.5~7.8")
	}
	f.Fuzz(func(t *testing.T, body []byte, pos string) {
		for _, read := range []func(string) error{readOld, read4186} {
			if err := read(string(body)); err != nil && mxerr.As(err) == nil {
				t.Errorf("%q: %v", body, err)
			}
		}
		if b, err := web.DecodeObject[body3575](body); err == nil {
			if req, err := b.request("@me:test"); err == nil {
				for _, l := range req.lists {
					c := newConnection(connKey{})
					for _, q := range l.config.asked {
						n, err := c.place(q)
						if err != nil {
							t.Fatal(err)
						}
						if again, err := c.place(q); err != nil || again != n {
							t.Errorf("a request has two places: %v", err)
						}
						q.matches("m.room.member", "@me:test")
					}
				}
			}
		}
		if p, err := parseSlidingPos(pos); err == nil {
			if s := string(p.append(nil)); s != pos {
				t.Errorf("%q became %q", pos, s)
			}
		}
		if r, err := decodeSent(body, 3); err == nil {
			if again, err := decodeSent(r.encode(), 3); err != nil || fmt.Sprint(*again) != fmt.Sprint(*r) {
				t.Errorf("%v became %v: %v", r, again, err)
			}
		}
	})
}
