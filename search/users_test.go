package search_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/testkit"
)

// answer is a response to a search.
type answer struct {
	Count      int      `json:"count"`
	Highlights []string `json:"highlights"`
	Results    []struct {
		Rank   float64 `json:"rank"`
		Result struct {
			EventID  string         `json:"event_id"`
			RoomID   string         `json:"room_id"`
			Content  map[string]any `json:"content"`
			Unsigned map[string]any `json:"unsigned"`
		} `json:"result"`
		Context struct {
			Start, End string
			Before     []map[string]any          `json:"events_before"`
			After      []map[string]any          `json:"events_after"`
			Profiles   map[string]map[string]any `json:"profile_info"`
		} `json:"context"`
	} `json:"results"`
	State  map[string][]map[string]any `json:"state"`
	Groups map[string]map[string]struct {
		Order   int      `json:"order"`
		Results []string `json:"results"`
		Next    string   `json:"next_batch"`
	} `json:"groups"`
	Next string `json:"next_batch"`
}

// ids are the events that were found, in order.
func (a *answer) ids() []string {
	out := []string{}
	for _, r := range a.Results {
		out = append(out, r.Result.EventID)
	}
	return out
}

// ask searches; more are further members of the criteria.
func ask(t testing.TB, c *hstest.Client, term, more, next string) *answer {
	t.Helper()
	quoted, err := json.Marshal(term)
	if err != nil {
		t.Fatal(err)
	}
	if more != "" {
		more = "," + more
	}
	path := "/v3/search"
	if next != "" {
		path += "?next_batch=" + next
	}
	r := c.Do(t, "POST", fmt.Sprintf(`{"search_categories":{"room_events":{"search_term":%s%s}}}`, quoted, more), path)
	if r.Status != 200 {
		t.Fatalf("search for %q: %d %s", term, r.Status, r.Body)
	}
	var out struct {
		Categories struct {
			RoomEvents answer `json:"room_events"`
		} `json:"search_categories"`
	}
	r.JSON(t, &out)
	return &out.Categories.RoomEvents
}

// finds waits until a search gives these events, in this order where the order is given by time.
func finds(t testing.TB, c *hstest.Client, term string, want ...string) {
	t.Helper()
	slices.Sort(want)
	var got []string
	for end := time.Now().Add(testkit.Patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		got = ask(t, c, term, `"filter":{"limit":100}`, "").ids()
		slices.Sort(got)
		if slices.Equal(got, want) {
			return
		}
	}
	t.Errorf("%s finds %q: %v, want %v", c.UserID, term, got, want)
}

// ready waits until the index of a new server can be asked.
func ready(t testing.TB, c *hstest.Client) {
	t.Helper()
	var got hstest.Response
	defer func() {
		if t.Failed() {
			t.Logf("the last answer was %d %s", got.Status, got.Body)
		}
	}()
	testkit.Eventually(t, "no answer to a search", func() bool {
		got = c.Do(t, "POST", `{"search_categories":{"room_events":{"search_term":"anything"}}}`, "/v3/search")
		return got.Status == 200
	})
}

func TestSearch(t *testing.T) {
	each(t, func(t *testing.T, hs *hstest.Server) {
		alice, bob, eve := hs.User("alice"), hs.User("bob"), hs.User("eve")
		room := alice.CreateRoom("private_chat")
		alice.Invite(room, bob.UserID)
		bob.Join(room)
		ready(t, alice)
		first := string(alice.Text(room, "The quarterly report is on the shared drive"))
		sent := time.Now()
		testkit.Within(t, time.Second, "the message was not found", func() bool { return len(ask(t, bob, "report", "", "").Results) == 1 })
		t.Logf("found after %v", time.Since(sent))
		second := string(bob.Text(room, "季度报告已经发到共享文件夹，请查收 Quarterly-Report_2026.xlsx"))
		third := string(alice.Text(room, "Résumé of Zoë: naïve ＦＵＬＬ width, order №A-10023/7"))

		t.Run("terms", func(t *testing.T) {
			for term, want := range map[string][]string{
				"report": {first, second}, "REPORT": {first, second}, "quarterly shared": {first}, `"shared drive"`: {first}, `"drive shared"`: {},
				"季度": {second}, "报告已经": {second}, "告已": {second}, "查": {second}, "2026.xlsx": {second}, "report_20": {second}, "共享 report": {second},
				"resume": {third}, "zoe": {third}, "naive full": {third}, "A-10023": {third}, "0023/7": {third}, "xyz": {}, "quart*": {first, second}, "uarter*": {},
			} {
				finds(t, alice, term, want...)
			}
			got := ask(t, alice, "resume", "", "")
			if !slices.Contains(got.Highlights, "résumé") {
				t.Errorf("highlights of resume: %v", got.Highlights)
			}
			if got.Count != 1 {
				t.Errorf("count %d", got.Count)
			}
			finds(t, eve, "report")
		})

		t.Run("edits and redactions", func(t *testing.T) {
			id := string(alice.Text(room, "the password is swordfish"))
			finds(t, bob, "swordfish", id)
			alice.Event(room, "m.room.message", `{"msgtype":"m.text","body":"* it is tuna","m.new_content":{"msgtype":"m.text","body":"it is tuna"},"m.relates_to":{"rel_type":"m.replace","event_id":"`+id+`"}}`)
			finds(t, bob, "tuna", id)
			finds(t, bob, "swordfish")
			got := ask(t, bob, "tuna", "", "")
			if body := hstest.At(got.Results[0].Result.Unsigned, "m.relations", "m.replace", "content", "m.new_content", "body"); body != "it is tuna" {
				t.Errorf("the hit shows %v", got.Results[0].Result)
			}
			second := alice.Event(room, "m.room.message", `{"msgtype":"m.text","body":"* it is cod","m.new_content":{"msgtype":"m.text","body":"it is cod"},"m.relates_to":{"rel_type":"m.replace","event_id":"`+id+`"}}`)
			finds(t, bob, "it is cod", id)
			alice.Must(t, "PUT", `{}`, "/v3/rooms/%s/redact/%s/%s", room, second, alice.Txn())
			finds(t, bob, "it is tuna", id) // the edit before it counts again
			finds(t, bob, "it is cod")
			bob.Event(room, "m.room.message", `{"msgtype":"m.text","body":"* x","m.new_content":{"msgtype":"m.text","body":"not mine"},"m.relates_to":{"rel_type":"m.replace","event_id":"`+id+`"}}`)
			alice.Must(t, "PUT", `{}`, "/v3/rooms/%s/redact/%s/%s", room, id, alice.Txn())
			finds(t, bob, "tuna")
			finds(t, bob, "not mine")
		})

		t.Run("names and topics", func(t *testing.T) {
			name := string(alice.State(room, "m.room.name", "", `{"name":"Glass house"}`))
			topic := string(alice.State(room, "m.room.topic", "", `{"topic":"All about glass"}`))
			text := string(alice.Text(room, "A glass of water"))
			finds(t, bob, "glass", name, topic, text)
			for key, want := range map[string]string{"content.name": name, "content.topic": topic, "content.body": text} {
				if got := ask(t, bob, "glass", `"keys":["`+key+`"]`, "").ids(); !slices.Equal(got, []string{want}) {
					t.Errorf("%s: %v", key, got)
				}
			}
			if got := ask(t, bob, "glass", `"keys":[]`, "").ids(); len(got) != 0 {
				t.Errorf("no keys: %v", got)
			}
		})
	})
}

func TestSearchVisibility(t *testing.T) {
	each(t, func(t *testing.T, hs *hstest.Server) {
		alice, bob, carol := hs.User("alice"), hs.User("bob"), hs.User("carol")
		ready(t, alice)
		room := alice.CreateRoomWith(`{"preset":"private_chat","initial_state":[{"type":"m.room.history_visibility","state_key":"","content":{"history_visibility":"joined"}}]}`)
		before := string(alice.Text(room, "walrus before"))
		alice.Invite(room, bob.UserID)
		bob.Join(room)
		during := string(alice.Text(room, "walrus during"))
		bob.Leave(room)
		after := string(alice.Text(room, "walrus after"))
		finds(t, alice, "walrus", before, during, after)
		finds(t, bob, "walrus", during)
		finds(t, carol, "walrus")
		bob.Must(t, "POST", `{}`, "/v3/rooms/%s/forget", room)
		finds(t, bob, "walrus")

		ignored := alice.CreateRoom("public_chat")
		carol.Join(ignored)
		spam := string(carol.Text(ignored, "spam about walnuts"))
		finds(t, alice, "walnuts", spam)
		alice.Must(t, "PUT", `{"ignored_users":{"`+string(carol.UserID)+`":{}}}`, "/v3/user/%s/account_data/m.ignored_user_list", alice.UserID)
		finds(t, alice, "walnuts")

		t.Run("upgraded", func(t *testing.T) {
			old := alice.CreateRoom("public_chat")
			bob.Join(old)
			said := string(bob.Text(old, "an otter in the old room"))
			got := alice.Must(t, "POST", `{"new_version":"11"}`, "/v3/rooms/%s/upgrade", old)
			newer := got["replacement_room"].(string)
			inNew := string(alice.Text(roomID(newer), "an otter in the new room"))
			finds(t, alice, "otter", said, inNew)
			ids := ask(t, alice, "otter", `"filter":{"rooms":["`+newer+`"]}`, "").ids()
			if len(ids) != 2 {
				t.Errorf("the old room is not followed back: %v", ids)
			}
			ids = ask(t, alice, "otter", `"filter":{"rooms":["`+string(old)+`"]}`, "").ids()
			if !slices.Equal(ids, []string{said}) {
				t.Errorf("the old room alone: %v", ids)
			}
		})
	})
}

func TestSearchResponse(t *testing.T) {
	each(t, func(t *testing.T, hs *hstest.Server) {
		alice, bob := hs.User("alice"), hs.User("bob")
		ready(t, alice)
		alice.Must(t, "PUT", `{"displayname":"Alice A."}`, "/v3/profile/%s/displayname", alice.UserID)
		var rooms []string
		var sent []string
		for i := range 2 {
			r := alice.CreateRoom("public_chat")
			bob.Join(r)
			rooms = append(rooms, string(r))
			for k := range 8 {
				who := alice
				if k%2 == 1 {
					who = bob
				}
				sent = append(sent, string(who.Text(r, fmt.Sprintf("penguin %d in room %d", k, i))))
				who.Text(r, "something else")
			}
		}
		last := string(alice.Event(roomID(rooms[1]), "m.room.message", `{"msgtype":"m.image","body":"penguin.png","url":"mxc://test/abc"}`))
		sent = append(sent, last)
		finds(t, bob, "penguin", slices.Clone(sent)...)
		newest := slices.Clone(sent)
		slices.Reverse(newest)

		t.Run("pages by time", func(t *testing.T) {
			var got []string
			next := ""
			for range 10 {
				a := ask(t, bob, "penguin", `"order_by":"recent","filter":{"limit":5}`, next)
				got = append(got, a.ids()...)
				if a.Count != len(sent) {
					t.Errorf("count %d", a.Count)
				}
				if next = a.Next; next == "" {
					break
				}
			}
			if !slices.Equal(got, newest) {
				t.Errorf("got %v, want %v", got, newest)
			}
		})

		t.Run("rank", func(t *testing.T) {
			exact := string(alice.Text(roomID(rooms[0]), "emperor penguin"))
			parts := string(alice.Text(roomID(rooms[0]), "emperors like penguins"))
			apart := string(alice.Text(roomID(rooms[0]), "a penguin for the emperor"))
			finds(t, bob, "emperor penguin", exact, parts, apart)
			var got, again []string
			a := ask(t, bob, "emperor penguin", "", "")
			got = a.ids()
			if !slices.Equal(got, []string{exact, apart, parts}) {
				t.Errorf("by rank: %v", got)
			}
			for i := 1; i < len(a.Results); i++ {
				if a.Results[i].Rank >= a.Results[i-1].Rank {
					t.Errorf("rank %v", a.Results)
				}
			}
			next := ""
			for range 4 {
				a = ask(t, bob, "emperor penguin", `"filter":{"limit":1}`, next)
				again = append(again, a.ids()...)
				if next = a.Next; next == "" {
					break
				}
			}
			if !slices.Equal(got, again) {
				t.Errorf("one by one: %v, want %v", again, got)
			}
		})

		t.Run("filter", func(t *testing.T) {
			for f, want := range map[string]int{
				`{"senders":["` + string(alice.UserID) + `"],"limit":50}`:     9 + 3,
				`{"not_senders":["` + string(alice.UserID) + `"],"limit":50}`: 8,
				`{"rooms":["` + rooms[1] + `"],"limit":50}`:                   9,
				`{"not_rooms":["` + rooms[1] + `"],"limit":50}`:               8 + 3,
				`{"contains_url":true}`:                                       1,
				`{"types":["m.room.m*"],"limit":50}`:                          17 + 3,
				`{"not_types":["m.room.message"]}`:                            0,
				`{"types":[]}`:                                                0,
			} {
				if got := len(ask(t, bob, "penguin", `"filter":`+f, "").Results); got != want {
					t.Errorf("%s: %d, want %d", f, got, want)
				}
			}
		})

		t.Run("context, state, groups", func(t *testing.T) {
			a := ask(t, bob, `"penguin 2"`, `"order_by":"recent","event_context":{"before_limit":2,"after_limit":1,"include_profile":true},"include_state":true`, "")
			if len(a.Results) != 2 {
				t.Fatalf("%d results", len(a.Results))
			}
			c := a.Results[0].Context
			if len(c.Before) != 2 || len(c.After) != 1 || c.Start == "" || c.End == "" {
				t.Errorf("context %+v", c)
			}
			if name := c.Profiles[string(alice.UserID)]["displayname"]; name != "Alice A." {
				t.Errorf("profiles %v", c.Profiles)
			}
			if len(a.State) != 2 || len(a.State[rooms[0]]) < 5 {
				t.Errorf("state of %d rooms", len(a.State))
			}
			page := bob.Must(t, "GET", "", "/v3/rooms/%s/messages?dir=b&limit=1&from=%s", rooms[1], c.Start)
			if len(page["chunk"].([]any)) != 1 {
				t.Errorf("the context's token leads to %v", page)
			}

			var members []string
			a = ask(t, bob, "penguin", `"order_by":"recent","filter":{"limit":4},"groupings":{"group_by":[{"key":"room_id"},{"key":"sender"}]}`, "")
			if len(a.Groups) != 2 || len(a.Groups["sender"]) != 2 && len(a.Groups["sender"]) != 1 {
				t.Fatalf("groups %v", a.Groups)
			}
			group := a.Groups["room_id"][rooms[1]]
			members = append(members, group.Results...)
			for next := group.Next; next != ""; {
				a = ask(t, bob, "penguin", `"order_by":"recent","filter":{"limit":4},"groupings":{"group_by":[{"key":"room_id"}]}`, next)
				for _, r := range a.Results {
					if r.Result.RoomID != rooms[1] {
						t.Errorf("a hit of another group: %v", r)
					}
				}
				members = append(members, a.ids()...)
				next = a.Groups["room_id"][rooms[1]].Next
			}
			if len(members) != 9 {
				t.Errorf("%d hits in the group's pages", len(members))
			}
		})

		t.Run("refused", func(t *testing.T) {
			for body, want := range map[string]string{
				`{}`: "M_MISSING_PARAM",
				`{"search_categories":{"room_events":{}}}`:                                                           "M_MISSING_PARAM",
				`{"search_categories":{"room_events":{"search_term":""}}}`:                                           "M_INVALID_PARAM",
				`{"search_categories":{"room_events":{"search_term":" \t "}}}`:                                       "M_INVALID_PARAM",
				`{"search_categories":{"room_events":{"search_term":"!"}}}`:                                          "M_INVALID_PARAM",
				`{"search_categories":{"room_events":{"search_term":"` + strings.Repeat("x ", 40) + `"}}}`:           "M_INVALID_PARAM",
				`{"search_categories":{"room_events":{"search_term":"` + strings.Repeat("x", 2000) + `"}}}`:          "M_INVALID_PARAM",
				`{"search_categories":{"room_events":{"search_term":5}}}`:                                            "M_BAD_JSON",
				`{"search_categories":{"room_events":{"search_term":"x","order_by":"size"}}}`:                        "M_INVALID_PARAM",
				`{"search_categories":{"room_events":{"search_term":"x","keys":["content.url"]}}}`:                   "M_INVALID_PARAM",
				`{"search_categories":{"room_events":{"search_term":"x","filter":[]}}}`:                              "M_BAD_JSON",
				`{"search_categories":{"room_events":{"search_term":"x","groupings":{"group_by":[{"key":"day"}]}}}}`: "M_INVALID_PARAM",
				`{"search_categories":{"room_events":{"search_term":"x","event_context":{"before_limit":-1}}}}`:      "M_INVALID_PARAM",
			} {
				if r := bob.Do(t, "POST", body, "/v3/search"); r.Status != 400 || r.Errcode != want {
					t.Errorf("%.90s: %d %s, want %s", body, r.Status, r.Errcode, want)
				}
			}
			for _, next := range []string{"x", "AAAA", "MSAyIDMgcm9vbQ"} {
				if r := bob.Do(t, "POST", `{"search_categories":{"room_events":{"search_term":"xy"}}}`, "/v3/search?next_batch=%s", next); r.Status != 400 {
					t.Errorf("next_batch %s: %d", next, r.Status)
				}
			}
			if r := hs.Anonymous().Do(t, "POST", `{}`, "/v3/search"); r.Status != 401 {
				t.Errorf("without a token: %d", r.Status)
			}
			// marks of query languages are characters
			for _, term := range []string{`body:x`, `*`, `**`, `a* OR b*`, `"`, `"""`, `(x`, `\`, `x~2`, `/.*/`, `{"match_all":{}}`, "a\x00b", `-x`, `+`, `&&`, "\u202ex", "😀", "👩\u200d👩\u200d👧", "x\\u0000y", strings.Repeat("*a", 400)} {
				quoted, _ := json.Marshal(term)
				if r := bob.Do(t, "POST", `{"search_categories":{"room_events":{"search_term":`+string(quoted)+`}}}`, "/v3/search"); r.Status != 200 && r.Status != 400 {
					t.Errorf("%q: %d %s", term, r.Status, r.Body)
				}
			}
		})
	})
}
