package hr_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
)

const (
	secret     = "0123456789012345678901234567890123"
	enterprise = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
	employment = "urn:moothall:params:scim:schemas:extension:employment:2.0:User"
)

// withHR gives the HR system a token.
func withHR(c *homeserver.Config) {
	c.HR.Tokens = []homeserver.HRToken{{ID: "workday", Secret: secret}}
	c.HR.Departments = true
	c.HR.Localpart = "{{.UserPart}}"
}

// scim is an HR system.
type scim struct {
	t     testing.TB
	url   string
	token string
}

func hrOf(t testing.TB, hs *hstest.Server) *scim { return &scim{t, hs.URL, secret} }

// answer is what SCIM said.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) get(path string) gjson.Result { return gjson.Get(a.body, path) }

// do makes a request; headers are pairs.
func (s *scim) do(method, path, body string, headers ...string) answer {
	s.t.Helper()
	req, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.token)
	req.Header.Set("Content-Type", "application/scim+json")
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil {
		s.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(b)}
}

// want makes a request that is to end with a status.
func (s *scim) want(status int, method, path, body string, headers ...string) answer {
	s.t.Helper()
	a := s.do(method, path, body, headers...)
	if a.status != status {
		s.t.Fatalf("%s %s %s: %d, want %d: %s", method, path, body, a.status, status, a.body)
	}
	if status >= 400 && (a.get("schemas.0").Str != "urn:ietf:params:scim:api:messages:2.0:Error" || a.get("status").Str != fmt.Sprint(status)) {
		s.t.Errorf("%s %s: the error is not one of SCIM: %s", method, path, a.body)
	}
	return a
}

func (s *scim) refused(status int, scimType, method, path, body string, headers ...string) {
	s.t.Helper()
	if a := s.want(status, method, path, body, headers...); a.get("scimType").Str != scimType {
		s.t.Errorf("%s %s %s: scimType %q, want %q: %s", method, path, body, a.get("scimType").Str, scimType, a.body)
	}
}

func userBody(name string, more string) string {
	return fmt.Sprintf(`{"schemas":["urn:ietf:params:scim:schemas:core:2.0:User"],"userName":%q%s}`, name, more)
}

// add makes a user and returns the id.
func (s *scim) add(name, more string) string {
	s.t.Helper()
	return s.want(201, "POST", "/scim/v2/Users", userBody(name, more)).get("id").Str
}

func patchBody(ops string) string {
	return `{"schemas":["urn:ietf:params:scim:api:messages:2.0:PatchOp"],"Operations":[` + ops + `]}`
}

func (s *scim) find(filter string) string {
	s.t.Helper()
	a := s.want(200, "GET", "/scim/v2/Users?filter="+url.QueryEscape(filter), "")
	var out []string
	for _, r := range a.get("Resources").Array() {
		out = append(out, r.Get("userName").Str)
	}
	slices.Sort(out)
	if int(a.get("totalResults").Int()) != len(out) {
		s.t.Errorf("totalResults %d of %v", a.get("totalResults").Int(), out)
	}
	return strings.Join(out, " ")
}

// roomNames lists the names of the rooms that a client is joined to, spaces too.
func roomNames(c *hstest.Client) []string {
	sync := c.Sync("full_state=true")
	var out []string
	joined, _ := hstest.At(sync, "rooms", "join").(map[string]any)
	for _, r := range joined {
		name := ""
		for _, from := range []any{hstest.At(r, "state", "events"), hstest.At(r, "timeline", "events")} {
			list, _ := from.([]any)
			for _, e := range list {
				if hstest.At(e, "type") == "m.room.name" {
					name = hstest.At(e, "content", "name").(string)
				}
			}
		}
		if name != "" {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// messages lists the bodies of all messages that a client sees.
func messages(c *hstest.Client) []string {
	sync := c.Sync("")
	var out []string
	joined, _ := hstest.At(sync, "rooms", "join").(map[string]any)
	for _, r := range joined {
		list, _ := hstest.At(r, "timeline", "events").([]any)
		for _, e := range list {
			if body, ok := hstest.At(e, "content", "body").(string); ok {
				out = append(out, body)
			}
		}
	}
	return out
}

func TestUsers(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		s := hrOf(t, hs)
		a := s.want(201, "POST", "/scim/v2/Users", userBody("Ann.Lee@example.org", `,"externalId":"e-1","name":{"givenName":"Ann","familyName":"Lee"},"active":"True",
			"emails":[{"value":"ann@example.org","type":"work","primary":true},{"value":"ann@home.example","type":"home"}],"nonsense":1,
			"`+enterprise+`":{"employeeNumber":"7","department":"R&D"}`))
		annID, tag := a.get("id").Str, a.header.Get("ETag")
		if a.header.Get("Location") != a.get("meta.location").Str || tag != a.get("meta.version").Str || tag == "" || a.get("active").Type != gjson.True ||
			!strings.HasPrefix(a.header.Get("Content-Type"), "application/scim+json") || a.get("nonsense").Exists() {
			t.Errorf("created: %s %v", a.body, a.header)
		}
		at := "/scim/v2/Users/" + annID
		if p := hs.User("bob").Must(t, "GET", "", "/v3/profile/@ann.lee:test"); p["displayname"] != "Ann Lee" || p["org.moothall.department"] != "R&D" {
			t.Errorf("profile %v", p)
		}
		s.refused(409, "uniqueness", "POST", "/scim/v2/Users", userBody("ann.lee@EXAMPLE.org", ""))
		s.refused(409, "uniqueness", "POST", "/scim/v2/Users", userBody("bob", ""))
		s.refused(400, "invalidValue", "POST", "/scim/v2/Users", `{"schemas":["urn:ietf:params:scim:schemas:core:2.0:User"]}`)
		s.refused(400, "invalidValue", "POST", "/scim/v2/Users", userBody("x", `,"active":"maybe"`))
		s.refused(400, "invalidSyntax", "POST", "/scim/v2/Users", `{`)
		s.want(404, "GET", "/scim/v2/Users/nobody", "")
		s.want(404, "GET", "/scim/v2/Nothing", "")
		s.want(304, "GET", at, "", "If-None-Match", tag)
		s.refused(412, "", "PUT", at, userBody("ann.lee@example.org", ""), "If-Match", `W/"99"`)

		// replaced as a whole: what is left out is gone
		a = s.want(200, "PUT", at, userBody("ann.lee@example.org", `,"displayName":"Ann"`), "If-Match", tag)
		if a.get("emails").Exists() || a.get("externalId").Exists() || a.header.Get("ETag") == tag {
			t.Errorf("replaced: %s", a.body)
		}
		s.refused(412, "", "PATCH", at, patchBody(`{"op":"add","path":"title","value":"x"}`), "If-Match", tag)
		a = s.want(200, "PATCH", at, patchBody(`{"op":"Add","path":"emails[type eq \"work\"].value","value":"a@b.c"},{"op":"replace","path":"name.familyName","value":"L"},
			{"op":"replace","value":{"`+enterprise+`:department":"HR","title":"Boss"}},{"op":"add","path":"displayName","value":"安"}`))
		if a.get("emails.0.value").Str != "a@b.c" || a.get("name.familyName").Str != "L" || a.get(gjson.Escape(enterprise)+".department").Str != "HR" ||
			a.get("title").Str != "Boss" || a.get("displayName").Str != "安" {
			t.Errorf("patched: %s", a.body)
		}
		s.refused(400, "invalidPath", "PATCH", at, patchBody(`{"op":"add","path":"shoeSize","value":1}`))
		s.refused(400, "mutability", "PATCH", at, patchBody(`{"op":"replace","path":"id","value":"1"}`))
		s.refused(400, "noTarget", "PATCH", at, patchBody(`{"op":"remove"}`))
		s.refused(400, "invalidValue", "PATCH", at, patchBody(`{"op":"replace","path":"userName","value":""}`))
		s.refused(400, "invalidSyntax", "PATCH", at, `{"Operations":[{"op":"add","path":"title","value":"x"}]}`)

		for i := range 5 {
			s.add(fmt.Sprintf("u%d", i), fmt.Sprintf(`,"title":"t%d","externalId":"x%d"`, 4-i, i))
		}
		for filter, want := range map[string]string{
			`userName eq "U3"`: "u3", `externalId eq "x2"`: "u2", `externalId eq "X2"`: "", `id eq "` + annID + `"`: "ann.lee@example.org",
			`title pr and not (userName sw "u")`: "ann.lee@example.org", `title gt "t2" and userName ne "u0"`: "u1",
			`emails[type eq "work" and value co "@b"]`: "ann.lee@example.org", `emails.value eq "a@b.c"`: "ann.lee@example.org", `emails co "b.c"`: "ann.lee@example.org",
			enterprise + `:department eq "hr"`: "ann.lee@example.org", `userName eq "u1" or title eq "T1"`: "u1 u3", `active eq false`: "",
			`meta.created gt "2020-01-01T00:00:00Z" and userName ew "4"`: "u4", `USERNAME Eq "u4"`: "u4",
		} {
			if got := s.find(filter); got != want {
				t.Errorf("%s finds %q, want %q", filter, got, want)
			}
		}
		s.refused(400, "invalidFilter", "GET", "/scim/v2/Users?filter=userName+eq", "")
		a = s.want(200, "GET", "/scim/v2/Users?startIndex=2&count=2&attributes=userName,emails.value", "")
		if a.get("totalResults").Int() != 6 || a.get("itemsPerPage").Int() != 2 || a.get("startIndex").Int() != 2 || a.get("Resources.0.userName").Str != "u0" ||
			a.get("Resources.0.title").Exists() || !a.get("Resources.0.id").Exists() {
			t.Errorf("page: %s", a.body)
		}
		a = s.want(200, "GET", "/scim/v2/Users?sortBy=title&sortOrder=descending&excludedAttributes=meta&filter=userName+sw+%22u%22", "")
		if a.get("Resources.0.userName").Str != "u0" || a.get("Resources.4.userName").Str != "u4" || a.get("Resources.0.meta").Exists() {
			t.Errorf("sorted: %s", a.body)
		}
		a = s.want(200, "POST", "/scim/v2/Users/.search", `{"schemas":["urn:ietf:params:scim:api:messages:2.0:SearchRequest"],"filter":"userName eq \"u1\"","count":1}`)
		if a.get("Resources.0.userName").Str != "u1" {
			t.Errorf("searched: %s", a.body)
		}

		// deleted and back: the same account
		s.want(204, "DELETE", at, "")
		s.want(404, "GET", at, "")
		s.want(404, "DELETE", at, "")
		if id := s.add("ann.lee@example.org", `,"displayName":"Ann again"`); id != annID {
			t.Errorf("who came back has the id %s, had %s", id, annID)
		}
	}, withHR)
}

// TestDeactivation shows that the sessions of somebody whom Entra ID, Okta or a plain client switches off end, and that
// they come back with the same user id.
func TestDeactivation(t *testing.T) {
	link := func(c *homeserver.Config) { c.HR.LinkExisting = true }
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		s := hrOf(t, hs)
		ann := hs.User("ann")
		at := "/scim/v2/Users/" + s.add("ann", "")
		for _, off := range []string{
			`{"op":"Replace","path":"active","value":"False"}`,           // Entra ID
			`{"op":"replace","value":{"active":false}}`,                  // Okta
			`{"op":"Add","value":{"active":"false"}}`,                    //
			`{"op":"replace","path":"Active","value":[{"value":false}]}`, // refused below
		} {
			if strings.Contains(off, "[") {
				s.refused(400, "invalidValue", "PATCH", at, patchBody(off))
				continue
			}
			if r := ann.Do(t, "GET", "", "/v3/account/whoami"); r.Status != 200 {
				t.Fatalf("before: %s", r.Body)
			}
			if a := s.want(200, "PATCH", at, patchBody(off)); a.get("active").Type != gjson.False {
				t.Errorf("%s: %s", off, a.body)
			}
			r := ann.Do(t, "GET", "", "/v3/account/whoami")
			if r.Status != 401 || r.Errcode != "M_UNKNOWN_TOKEN" || !gjson.GetBytes(r.Body, "soft_logout").Bool() {
				t.Errorf("%s: %d %s", off, r.Status, r.Body)
			}
			s.want(200, "PATCH", at, patchBody(`{"op":"replace","path":"active","value":"True"}`))
			ann = ann.Login()
		}
		s.want(204, "DELETE", at, "")
		if r := ann.Do(t, "GET", "", "/v3/account/whoami"); r.Status != 401 {
			t.Errorf("deleted: %s", r.Body)
		}
	}, withHR, link)
}

func TestJoinerMoverLeaver(t *testing.T) {
	rules := func(c *homeserver.Config) {
		c.HR.Welcome, c.HR.LinkExisting = true, true
		c.Groups.Rules = []homeserver.GroupRule{{ID: "unit", Kind: "unit", Source: "scim", RoomName: "Unit {{.Name}}"}}
	}
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		s := hrOf(t, hs)
		boss, ann := hs.User("boss"), hs.User("ann")
		bossID := s.add("boss", `,"displayName":"The Boss","preferredLanguage":"zh-CN"`)
		start := time.Now().Add(3 * time.Second).UTC()
		a := s.want(201, "POST", "/scim/v2/Users", userBody("ann", fmt.Sprintf(`,"displayName":"Ann <Lee>","title":"Engineer",
			%q:{"department":"Research","manager":{"value":%q}},%q:{"startDate":%q}`, enterprise, bossID, employment, start.Format(time.RFC3339Nano))))
		at := "/scim/v2/Users/" + a.get("id").Str
		if a.get("active").Exists() && !a.get("active").Bool() {
			t.Errorf("waiting, but not inactive: %s", a.body)
		}
		if r := ann.Do(t, "GET", "", "/v3/account/whoami"); r.Status != 401 {
			t.Errorf("before the first day: %s", r.Body)
		}
		login := func() int {
			return hs.Anonymous().Do(t, "POST", fmt.Sprintf(`{"type":"m.login.password","identifier":{"type":"m.id.user","user":"ann"},"password":%q}`, ann.Password), "/v3/login").Status
		}
		if login() == 200 {
			t.Error("signed in before the first day")
		}
		testkit.Eventually(t, "the first day begins", func() bool { return time.Now().After(start) && login() == 200 })
		ann = ann.Login()
		testkit.Eventually(t, "ann is in her department's room", func() bool { return slices.Equal(roomNames(ann), []string{"Unit Research"}) })
		testkit.Eventually(t, "ann is welcomed", func() bool {
			return slices.ContainsFunc(messages(ann), func(m string) bool {
				return strings.HasPrefix(m, "Welcome, Ann <Lee>!") && strings.Contains(m, "Unit Research")
			})
		})
		testkit.Eventually(t, "the manager is told", func() bool {
			return slices.ContainsFunc(messages(boss), func(m string) bool {
				return strings.Contains(m, "@ann:test) 今天加入你的团队") && strings.Contains(m, "Engineer")
			})
		})

		s.want(200, "PATCH", at, patchBody(fmt.Sprintf(`{"op":"replace","path":"%s:department","value":"Sales"}`, enterprise)))
		testkit.Eventually(t, "the department is another", func() bool { return slices.Equal(roomNames(ann), []string{"Unit Sales"}) })

		end := time.Now().Add(2 * time.Second).UTC()
		s.want(200, "PATCH", at, patchBody(fmt.Sprintf(`{"op":"add","path":"%s:endDate","value":%q}`, employment, end.Format(time.RFC3339Nano))))
		if r := ann.Do(t, "GET", "", "/v3/account/whoami"); r.Status != 200 {
			t.Errorf("before the last hour: %s", r.Body)
		}
		testkit.Eventually(t, "ann is out", func() bool { return ann.Do(t, "GET", "", "/v3/account/whoami").Status == 401 })
		if late := time.Since(end); late < -50*time.Millisecond || late > 10*time.Second {
			t.Errorf("out %v after the hour", late)
		}
		welcomes := 0
		s.want(200, "PATCH", at, patchBody(fmt.Sprintf(`{"op":"remove","path":"%s:endDate"}`, employment)))
		ann = ann.Login()
		for _, m := range messages(ann) {
			if strings.HasPrefix(m, "Welcome") {
				welcomes++
			}
		}
		if welcomes != 1 {
			t.Errorf("%d welcomes", welcomes)
		}
	}, withHR, rules)
}

func TestGroups(t *testing.T) {
	rules := func(c *homeserver.Config) {
		c.HR.LinkExisting = true
		c.Groups.Rules = []homeserver.GroupRule{{ID: "g", Kind: "group", Source: "scim"}}
	}
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		s := hrOf(t, hs)
		ann, bob := hs.User("ann"), hs.User("bob")
		annID, bobID := s.add("ann", ""), s.add("bob", "")
		group := func(name, members string) string {
			return fmt.Sprintf(`{"schemas":["urn:ietf:params:scim:schemas:core:2.0:Group"],"displayName":%q,"members":[%s]}`, name, members)
		}
		member := func(id string) string { return fmt.Sprintf(`{"value":%q}`, id) }
		a := s.want(201, "POST", "/scim/v2/Groups", group("Core", member(annID)))
		at := "/scim/v2/Groups/" + a.get("id").Str
		in := func(c *hstest.Client, want ...string) {
			t.Helper()
			testkit.Eventually(t, fmt.Sprintf("%s is in %v", c.UserID, want), func() bool { return slices.Equal(roomNames(c), want) })
		}
		in(ann, "Core")
		if u := s.want(200, "GET", "/scim/v2/Users/"+annID, ""); u.get("groups.0.display").Str != "Core" {
			t.Errorf("ann's groups: %s", u.body)
		}
		// Entra ID adds, Okta and Entra ID remove by path filter and by value
		s.want(200, "PATCH", at, patchBody(fmt.Sprintf(`{"op":"Add","path":"members","value":[%s]}`, member(bobID))))
		in(bob, "Core")
		s.want(200, "PATCH", at, patchBody(fmt.Sprintf(`{"op":"remove","path":"members[value eq \"%s\"]"}`, annID)))
		in(ann)
		s.want(200, "PATCH", at, patchBody(fmt.Sprintf(`{"op":"Remove","path":"members","value":[%s]},{"op":"replace","path":"displayName","value":"Kernel"}`, member(bobID))))
		in(bob)
		s.want(200, "PUT", at, group("Kernel", member(annID)+","+member(bobID)))
		in(ann, "Kernel")
		// a group in a group
		outer := s.want(201, "POST", "/scim/v2/Groups", group("All", member(a.get("id").Str)))
		in(bob, "All", "Kernel")
		s.refused(400, "invalidValue", "PATCH", at, patchBody(`{"op":"add","path":"members","value":[{"value":"nobody"}]}`))
		list := s.want(200, "GET", "/scim/v2/Groups?excludedAttributes=members&filter="+url.QueryEscape(`displayName eq "kernel"`), "")
		if list.get("totalResults").Int() != 1 || list.get("Resources.0.members").Exists() {
			t.Errorf("list: %s", list.body)
		}
		if n := s.want(200, "GET", "/scim/v2/Groups?filter="+url.QueryEscape(fmt.Sprintf(`members.value eq %q`, annID)), "").get("totalResults").Int(); n != 1 {
			t.Errorf("%d groups have ann by name", n)
		}
		s.want(204, "DELETE", "/scim/v2/Groups/"+outer.get("id").Str, "")
		in(bob, "Kernel")
		s.want(204, "DELETE", at, "")
		in(bob)
		in(ann)
	}, withHR, rules)
}

func TestAnnouncements(t *testing.T) {
	rules := func(c *homeserver.Config) {
		c.HR.LinkExisting = true
		c.Groups.Rules = []homeserver.GroupRule{{ID: "unit", Kind: "unit", Source: "scim", Alias: "unit-{{.Slug}}"}}
	}
	const at = "/_moothall/hr/v1/announcements"
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		s := hrOf(t, hs)
		ann, bob := hs.User("ann"), hs.User("bob")
		unit := fmt.Sprintf(`,%q:{"department":"Research"}`, enterprise)
		s.add("ann", unit)
		bobID := s.add("bob", unit)
		testkit.Eventually(t, "the unit has its room", func() bool { return len(roomNames(ann)) == 1 && len(roomNames(bob)) == 1 })
		status := func(id string, done func(a answer) bool) answer {
			var a answer
			testkit.Eventually(t, "announcement "+id, func() bool { a = s.want(200, "GET", at+"/"+id, ""); return done(a) })
			return a
		}
		sent := func(a answer) bool { return a.get("done").Bool() }

		a := s.want(201, "POST", at, `{"id":"2026-1","title":"All hands","text":"At noon <sharp>","to":{"department":"research"}}`)
		if a.get("places").Int() != 1 {
			t.Errorf("%s", a.body)
		}
		a = status("2026-1", sent)
		if a.get("recipients").Int() != 2 || a.get("read").Int() != 0 || a.get("sent").Int() != 1 {
			t.Errorf("%s", a.body)
		}
		s.want(200, "POST", at, `{"id":"2026-1","title":"All hands","text":"twice","to":{"department":"research"}}`)
		// one of them reads it
		var room id.RoomID
		var event id.EventID
		sync := ann.Sync("")
		for r, v := range hstest.At(sync, "rooms", "join").(map[string]any) {
			list, _ := hstest.At(v, "timeline", "events").([]any)
			for _, e := range list {
				if hstest.At(e, "content", "body") == "All hands\nAt noon <sharp>" {
					room, event = id.RoomID(r), id.EventID(hstest.At(e, "event_id").(string))
					if html := hstest.At(e, "content", "formatted_body"); html != "<strong>All hands</strong><br>At noon &lt;sharp&gt;" {
						t.Errorf("formatted: %v", html)
					}
				}
			}
		}
		ann.Must(t, "POST", `{}`, "/v3/rooms/%s/receipt/m.read/%s", room, event)
		status("2026-1", func(a answer) bool { return a.get("read").Int() == 1 })

		s.want(201, "POST", at, `{"id":"dm","text":"Just for you","to":{"users":["`+bobID+`","@gone:test"]}}`)
		a = status("dm", sent)
		if a.get("recipients").Int() != 1 || a.get("places").Int() != 1 {
			t.Errorf("%s", a.body)
		}
		testkit.Eventually(t, "bob has it", func() bool { return slices.Contains(messages(bob), "Just for you") })
		if slices.Contains(messages(ann), "Just for you") {
			t.Error("ann has it too")
		}
		s.want(201, "POST", at, `{"id":"all","text":"Holiday","to":{"everyone":true}}`)
		status("all", sent)
		testkit.Eventually(t, "both have it, in one chat each", func() bool {
			return slices.Contains(messages(ann), "Holiday") && slices.Contains(messages(bob), "Holiday") && len(roomNames(bob)) == 1
		})
		if n := len(bob.Must(t, "GET", "", "/v3/joined_rooms")["joined_rooms"].([]any)); n != 2 {
			t.Errorf("bob is in %d rooms, want the unit's and one with the service account", n)
		}
		s.want(201, "POST", at, `{"id":"room","text":"By alias","to":{"room":"#unit-research:test"}}`)
		if a = status("room", sent); a.get("recipients").Int() != 2 {
			t.Errorf("%s", a.body)
		}
		for _, body := range []string{
			`{"text":"x","to":{}}`, `{"text":"x","to":{"everyone":true,"group":"1"}}`, `{"text":" ","to":{"everyone":true}}`, `{"text":"x","to":{"group":"none"}}`,
			`{"text":"x","to":{"room":"!no:test"}}`, `{"text":"x","to":{"users":["nobody"]}}`, `{"text":"x","to":{"everyone":true},"via":"pigeon"}`,
		} {
			s.refused(400, "invalidValue", "POST", at, body)
		}
		s.want(404, "GET", at+"/none", "")
	}, withHR, rules)
}

// TestTwoNodes lets two processes serve one HR system, at the same time.
func TestTwoNodes(t *testing.T) {
	db := hstest.Postgres(storetest.Postgres(t))
	a, b := hrOf(t, hstest.Start(t, db, withHR)), hrOf(t, hstest.Start(t, db, withHR))
	var ids []string
	for i := range 10 {
		ids = append(ids, a.add(fmt.Sprintf("u%d", i), ""))
	}
	b.refused(409, "uniqueness", "POST", "/scim/v2/Users", userBody("U3", ""))
	at := "/scim/v2/Groups/" + a.want(201, "POST", "/scim/v2/Groups", `{"schemas":["urn:ietf:params:scim:schemas:core:2.0:Group"],"displayName":"G"}`).get("id").Str
	// each adds five members and gives each person a title, all at once: nothing is lost
	done := make(chan bool, len(ids))
	for i, userID := range ids {
		s := []*scim{a, b}[i%2]
		go func() {
			defer func() { done <- true }()
			for range 20 {
				if r := s.do("PATCH", at, patchBody(fmt.Sprintf(`{"op":"add","path":"members","value":[{"value":%q}]}`, userID))); r.status == 200 {
					break
				} else if r.status != 412 {
					t.Errorf("%d %s", r.status, r.body)
				}
			}
			if r := s.do("PATCH", "/scim/v2/Users/"+userID, patchBody(`{"op":"add","path":"title","value":"T"}`)); r.status != 200 {
				t.Errorf("%d %s", r.status, r.body)
			}
		}()
	}
	for range ids {
		<-done
	}
	if n := len(b.want(200, "GET", at, "").get("members").Array()); n != len(ids) {
		t.Errorf("%d members, want %d", n, len(ids))
	}
	if got := strings.Fields(a.find(`title eq "T"`)); len(got) != len(ids) {
		t.Errorf("titles of %v", got)
	}
}

func TestTokens(t *testing.T) {
	hs := hstest.Start(t, withHR)
	for _, token := range []string{"", "wrong", secret + "x", "mhhr_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"} {
		s := &scim{t, hs.URL, token}
		if a := s.want(401, "GET", "/scim/v2/Users", ""); a.header.Get("WWW-Authenticate") != "Bearer" {
			t.Errorf("%q: %v", token, a.header)
		}
	}
	bad := &scim{t, hs.URL, "guess"}
	limited := false
	for range 20 {
		limited = limited || bad.do("GET", "/scim/v2/Users", "").status == 429
	}
	if !limited {
		t.Error("twenty wrong tokens in a row, and no limit")
	}
	s := hrOf(t, hs)
	s.want(200, "GET", "/scim/v2/Users", "") // who has a right one goes on

	elsewhere := hstest.Start(t, withHR, func(c *homeserver.Config) { c.HR.Tokens[0].Addresses = []string{"192.0.2.0/24"} })
	hrOf(t, elsewhere).want(401, "GET", "/scim/v2/Users", "")
}

// TestSCIMTester runs scim2-tester against the server.
func TestSCIMTester(t *testing.T) {
	command := testkit.Partner(t, "MOOTHALL_TEST_SCIM_TESTER")
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		args := append(strings.Fields(command), hs.URL+"/scim/v2", secret)
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Errorf("scim2-tester: %v", err)
		}
	}, withHR)
}

// BenchmarkImport makes 5,000 people by SCIM with eight requests at a time, as provisioning clients do: each is looked for
// first, has a department, and a hundred departments have rooms.
//
//	go test ./appservices/hr -run - -bench Import -benchtime 1x
func BenchmarkImport(b *testing.B) {
	const people, clients = 5000, 8
	for range b.N {
		hs := hstest.Start(b, withHR, func(c *homeserver.Config) {
			c.Groups.Rules = []homeserver.GroupRule{{ID: "unit", Kind: "unit", Source: "scim"}}
			if url := os.Getenv("IMPORT_POSTGRES"); url != "" {
				c.Database.URL = homeserver.Secret(url)
			}
		})
		s := hrOf(b, hs)
		began := time.Now()
		// an identity provider waits where it is told to
		patient := func(method, path, body string) answer {
			for {
				if a := s.do(method, path, body); a.status != 429 {
					return a
				}
				time.Sleep(100 * time.Millisecond)
			}
		}
		done := make(chan bool, clients)
		for part := range clients {
			go func() {
				for i := part; i < people; i += clients {
					name := fmt.Sprintf("user%d@example.org", i)
					patient("GET", "/scim/v2/Users?filter="+url.QueryEscape(fmt.Sprintf("userName eq %q", name)), "")
					a := patient("POST", "/scim/v2/Users", userBody(name, fmt.Sprintf(`,"displayName":"User %d","title":"Engineer","emails":[{"value":%q,"type":"work"}],
						%q:{"department":"D%d","employeeNumber":"%d"}`, i, name, enterprise, i%100, i)))
					if a.status != 201 {
						b.Error(a.body)
						break
					}
				}
				done <- true
			}()
		}
		for range clients {
			<-done
		}
		b.ReportMetric(time.Since(began).Seconds(), "import-s")
		b.ReportMetric(people/time.Since(began).Seconds(), "people/s")
		b.StopTimer()
		time.Sleep(2 * time.Second)
		began = time.Now()
		var page struct{ TotalResults int }
		if err := json.Unmarshal([]byte(s.want(200, "GET", "/scim/v2/Users?count=1000&startIndex=4001", "").body), &page); err != nil || page.TotalResults != people {
			b.Errorf("%v %v", page, err)
		}
		b.ReportMetric(float64(time.Since(began).Milliseconds()), "page-of-1000-ms")
		began = time.Now()
		s.want(200, "GET", "/scim/v2/Users?filter="+url.QueryEscape(`emails.value eq "user4999@example.org"`), "")
		b.ReportMetric(float64(time.Since(began).Milliseconds()), "full-filter-ms")
		b.StartTimer()
	}
}
