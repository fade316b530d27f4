package hr

import (
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
)

func parse(t testing.TB, s string) object {
	t.Helper()
	var in map[string]any
	if err := json.Unmarshal([]byte(s), &in); err != nil {
		t.Fatal(err)
	}
	return in
}

func TestFilter(t *testing.T) {
	o, err := users.normal(parse(t, `{"USERNAME":"Bjensen","externalID":"X","title":"Tour \"Guide\"","active":true,
		"name":{"familyName":"O'Malley"},"emails":[{"type":"work","value":"b@example.com","primary":"True"},{"type":"home","value":"babs@jensen.org"}],
		"urn:ietf:params:scim:schemas:extension:ENTERPRISE:2.0:User":{"Department":"R","manager":"26118915"},
		"urn:moothall:params:scim:schemas:extension:employment:2.0:User":{"startDate":"2026-03-01T08:00:00+01:00"}}`))
	if err != nil {
		t.Fatal(err)
	}
	for filter, want := range map[string]bool{
		`userName eq "bjensen"`: true, `name.familyName co "O'Malley"`: true, `userName sw "J"`: false,
		`urn:ietf:params:scim:schemas:core:2.0:User:userName sw "B"`: true, `title pr`: true, `nickName pr`: false, `title eq "tour \"guide\""`: true,
		`title pr and nickName pr`: false, `title pr or nickName pr`: true, `nickName pr and title pr or active eq true`: true,
		`active eq false or title pr and nickName pr`: false, `(active eq false or title pr) and externalId eq "X"`: true, `externalId eq "x"`: false,
		`not (title pr)`: false, `not(nickName pr)`: true, `active eq "True"`: true, `active ne true`: false, `active gt true`: false,
		`emails[type eq "work" and value co "@example.com"]`: true, `emails[type eq "home" and value co "@example.com"]`: false,
		`emails[type eq "work" and (primary eq true)]`: true, `emails[not (type eq "work")]`: true, `emails.type eq "HOME"`: true, `emails co "jensen"`: true,
		`nickName eq null`: true, `nickName ne "x"`: true, `title eq 5`: false,
		`urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:department eq "r"`:                                        true,
		`urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:manager.value eq "26118915"`:                              true,
		`urn:moothall:params:scim:schemas:extension:employment:2.0:User:startDate eq "2026-03-01T07:00:00Z"`:                  true,
		`urn:moothall:params:scim:schemas:extension:employment:2.0:User:startDate lt "2026-03-01T07:00:00Z"`:                  false,
		`urn:moothall:params:scim:schemas:extension:employment:2.0:User:startDate ge "2026-03-01T07:00:00.000Z" and title pr`: true,
	} {
		f, err := users.parseFilter(filter)
		if err != nil {
			t.Errorf("%s: %v", filter, err)
			continue
		}
		if got := f.matches(users, o); got != want {
			t.Errorf("%s: %v, want %v", filter, got, want)
		}
	}
	for _, filter := range []string{
		"", " ", "userName", `userName eq`, `userName eq "x`, `userName eq x`, `userName foo "x"`, `shoeSize eq 1`, `userName eq "x" and`, `(userName eq "x"`,
		`userName eq "x")`, `emails[type eq "x"`, `emails[foo eq "x"]`, `not title pr`, `name.foo eq "x"`, `urn:x:y eq "1"`, `userName eq {"a":1}`,
		strings.Repeat("(", 60) + `title pr` + strings.Repeat(")", 60), `title pr` + strings.Repeat(" or title pr", 2000),
	} {
		if _, err := users.parseFilter(filter); err == nil || asSCIM(err).typ != invalidFilter {
			t.Errorf("%.40q: %v", filter, err)
		}
	}
}

func TestPatch(t *testing.T) {
	const start = `{"userName":"u","title":"T","name":{"givenName":"A","familyName":"B"},
		"emails":[{"type":"work","value":"w@x","primary":true},{"type":"home","value":"h@x"}]}`
	for _, tc := range []struct{ name, ops, want string }{
		{"add a simple one", `{"op":"add","path":"nickName","value":"n"}`, `"nickName":"n"`},
		{"null removes", `{"op":"replace","path":"title","value":null}`, `-title`},
		{"empty text removes", `{"op":"replace","path":"title","value":""}`, `-title`},
		{"remove", `{"op":"remove","path":"TITLE"}`, `-title`},
		{"part of a complex one", `{"op":"replace","path":"name.givenName","value":"C"}`, `"name":{"familyName":"B","givenName":"C"}`},
		{"complex ones are merged", `{"op":"replace","path":"name","value":{"givenName":"C"}}`, `"name":{"familyName":"B","givenName":"C"}`},
		{"remove a part", `{"op":"remove","path":"name.givenName"}`, `"name":{"familyName":"B"}`},
		{"add to a list, the new one is primary", `{"op":"add","path":"emails","value":[{"value":"n@x","primary":true}]}`,
			`"emails":[{"primary":false,"type":"work","value":"w@x"},{"type":"home","value":"h@x"},{"primary":true,"value":"n@x"}]`},
		{"add what is there", `{"op":"add","path":"emails","value":[{"value":"h@x","type":"home"}]}`, `"emails":[{"primary":true,"type":"work","value":"w@x"},{"type":"home","value":"h@x"}]`},
		{"replace a list", `{"op":"replace","path":"emails","value":[{"value":"n@x"}]}`, `"emails":[{"value":"n@x"}]`},
		{"replace by filter", `{"op":"replace","path":"emails[type eq \"home\"].value","value":"n@x"}`,
			`"emails":[{"primary":true,"type":"work","value":"w@x"},{"type":"home","value":"n@x"}]`},
		{"replace what is not there", `{"op":"replace","path":"emails[type eq \"other\"].value","value":"o@x"}`,
			`"emails":[{"primary":true,"type":"work","value":"w@x"},{"type":"home","value":"h@x"},{"type":"other","value":"o@x"}]`},
		{"remove by filter", `{"op":"remove","path":"emails[type eq \"work\"]"}`, `"emails":[{"type":"home","value":"h@x"}]`},
		{"remove by value", `{"op":"remove","path":"emails","value":[{"value":"w@x"}]}`, `"emails":[{"type":"home","value":"h@x"}]`},
		{"remove all by filter", `{"op":"remove","path":"emails[value pr]"}`, `-emails`},
		{"an extension's attribute", `{"op":"add","path":"urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:manager","value":"7"}`,
			`"urn:ietf:params:scim:schemas:extension:enterprise:2.0:User":{"manager":{"value":"7"}}`},
		{"no path, dotted names", `{"op":"Replace","value":{"name.familyName":"Z","active":"False","urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:costCenter":"9"}}`,
			`"active":false,"name":{"familyName":"Z","givenName":"A"},"urn:ietf:params:scim:schemas:extension:enterprise:2.0:User":{"costCenter":"9"}`},
		{"no path, what cannot be written is passed over", `{"op":"replace","value":{"id":"9","meta":{},"title":"N"}}`, `"title":"N"`},
		{"remove of nothing", `{"op":"remove","path":"nickName"}`, `"title":"T"`},
		{"required", `{"op":"remove","path":"userName"}`, `!mutability`},
		{"required emptied", `{"op":"replace","path":"userName","value":null}`, `!invalidValue`},
		{"filter on no list", `{"op":"replace","path":"name[givenName eq \"A\"].familyName","value":"x"}`, `!invalidPath`},
		{"no target", `{"op":"replace","path":"emails[value co \"zzz\"].type","value":"x"}`, `!noTarget`},
		{"read-only", `{"op":"replace","path":"groups","value":[]}`, `!mutability`},
		{"bad op", `{"op":"move","path":"title","value":"x"}`, `!invalidSyntax`},
		{"no value", `{"op":"add","path":"title"}`, `!invalidValue`},
		{"wrong type", `{"op":"add","path":"title","value":{"a":1}}`, `!invalidValue`},
		{"bad date", `{"op":"add","path":"urn:moothall:params:scim:schemas:extension:employment:2.0:User:startDate","value":"tomorrow"}`, `!invalidValue`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o, err := users.normal(parse(t, start))
			if err != nil {
				t.Fatal(err)
			}
			err = users.patch(o, parse(t, `{"operations":[`+tc.ops+`]}`))
			if typ, bad := strings.CutPrefix(tc.want, "!"); bad {
				if err == nil || asSCIM(err) == nil || asSCIM(err).typ != typ {
					t.Errorf("%v, want %s", err, typ)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			b, _ := json.Marshal(o, json.Deterministic(true))
			if name, gone := strings.CutPrefix(tc.want, "-"); gone {
				if o[name] != nil {
					t.Errorf("%s is there: %s", name, b)
				}
				return
			}
			wanted := parse(t, "{"+tc.want+"}")
			for name, v := range wanted {
				if !same(o[name], v) {
					t.Errorf("%s: %s, want %s", name, b, tc.want)
				}
			}
		})
	}
}

// FuzzFilter looks for filters and paths that bring the parser down.
func FuzzFilter(f *testing.F) {
	for _, s := range []string{`userName eq "x"`, `emails[type eq "work"].value`, `not (a pr) or b[c gt 1]`, `urn:ietf:params:scim:schemas:core:2.0:User:name.givenName`} {
		f.Add(s)
	}
	o, err := users.normal(parse(f, `{"userName":"x","emails":[{"value":"v"}],"active":true}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if e, err := users.parseFilter(s); err == nil {
			e.matches(users, o)
		} else if asSCIM(err) == nil {
			t.Errorf("%q: %v", s, err)
		}
		if p, err := users.parsePath(s); err == nil && p.attr != "" {
			c := clone(o).(object)
			_ = users.patchAt(c, "replace", s, "v")
			_ = users.patchAt(c, "remove", s, nil)
		}
	})
}
