package clientsync_test

import (
	"fmt"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/hstest"
)

// TestThreadSubscriptions subscribes to threads and hears of it by sliding sync.
func TestThreadSubscriptions(t *testing.T) { hstest.Each(t, testThreadSubscriptions) }

func testThreadSubscriptions(t *testing.T, hs *hstest.Server) {
	alice, bob, eve := hs.User("alice"), hs.User("bob"), hs.User("eve")
	room := alice.CreateRoom("public_chat")
	bob.Join(room)
	root, other := alice.Text(room, "root"), alice.Text(room, "another")
	reply := func(root id.EventID) id.EventID {
		return bob.Event(room, "m.room.message", fmt.Sprintf(`{"msgtype":"m.text","body":"r","m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, root))
	}
	first, elsewhere := reply(root), reply(other)
	const path = "/unstable/io.element.msc4306/rooms/%s/thread/%s/subscription"
	wants := func(name string, who *hstest.Client, method, body string, thread id.EventID, status int, errcode string) {
		t.Helper()
		if r := who.Do(t, method, body, path, room, thread); r.Status != status || r.Errcode != errcode {
			t.Errorf("%s: %d %s, not %d %s", name, r.Status, r.Body, status, errcode)
		}
	}
	because := func(e id.EventID) string { return fmt.Sprintf(`{"automatic":%q}`, e) }
	automatic := func(want bool) {
		t.Helper()
		if got := alice.Must(t, "GET", "", path, room, root)["automatic"]; got != want {
			t.Errorf("automatic is %v, not %v", got, want)
		}
	}
	sync := func(pos string) (string, any) {
		t.Helper()
		const path = "/unstable/org.matrix.simplified_msc3575/sync"
		body, got := `{"extensions":{"io.element.msc4308.thread_subscriptions":{"enabled":true,"limit":1}}}`, map[string]any(nil)
		if pos == "" {
			got = alice.Must(t, "POST", body, path)
		} else {
			got = alice.Must(t, "POST", body, path+"?pos=%s", pos)
		}
		return got["pos"].(string), hstest.At(got, "extensions", "io.element.msc4308.thread_subscriptions")
	}

	wants("nothing yet", alice, "GET", "", root, 404, "M_NOT_FOUND")
	wants("ending nothing", alice, "DELETE", "", root, 200, "")
	wants("no such event", alice, "PUT", "{}", "$none", 404, "M_NOT_FOUND")
	wants("a stranger", eve, "PUT", "{}", root, 404, "M_NOT_FOUND")
	wants("the root as the reason", alice, "PUT", because(root), root, 400, "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD")
	wants("a reason from another thread", alice, "PUT", because(elsewhere), root, 400, "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD")
	wants("a number as the reason", alice, "PUT", `{"automatic":1}`, root, 400, "M_BAD_JSON")
	pos, news := sync("")
	if news != nil {
		t.Errorf("news at first: %v", news)
	}
	wants("by itself", alice, "PUT", because(first), root, 200, "")
	automatic(true)
	pos, news = sync(pos)
	if hstest.At(news, "subscribed", string(room), string(root), "automatic") != true {
		t.Errorf("sliding sync says %v", news)
	}
	wants("by hand", alice, "PUT", "{}", root, 200, "")
	automatic(false)
	wants("by itself again", alice, "PUT", because(first), root, 200, "")
	automatic(false)
	second := reply(root)
	wants("end", alice, "DELETE", "", root, 200, "")
	third := reply(root)
	if _, news = sync(pos); hstest.At(news, "unsubscribed", string(room), string(root), "bump_stamp") == nil {
		t.Errorf("sliding sync says %v of the end", news)
	}
	for _, e := range []id.EventID{first, second} {
		wants("because of what came before the end", alice, "PUT", because(e), root, 409, "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION")
	}
	wants("because of what came after it", alice, "PUT", because(third), root, 200, "")

	// One at a time, the rest by pages.
	wants("another thread", alice, "PUT", "{}", other, 200, "")
	_, news = sync("")
	batch, _ := hstest.At(news, "prev_batch").(string)
	if hstest.At(news, "subscribed", string(room), string(other)) == nil || batch == "" {
		t.Fatalf("sliding sync says %v of two", news)
	}
	page := alice.Must(t, "GET", "", "/unstable/io.element.msc4308/thread_subscriptions?dir=b&from=%s", batch)
	if hstest.At(page, "subscribed", string(room), string(root)) == nil || page["end"] != nil {
		t.Errorf("the page has %v", page)
	}
	for _, query := range []string{"f", "b&from=x", "b&limit=0"} {
		if r := alice.Do(t, "GET", "", "/unstable/io.element.msc4308/thread_subscriptions?dir="+query); r.Status != 400 || r.Errcode != "M_INVALID_PARAM" {
			t.Errorf("%q: %d %s", query, r.Status, r.Body)
		}
	}
}
