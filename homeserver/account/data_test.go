package account_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

func TestBackup(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		p := openParts(t, cfg)
		ctx := t.Context()
		p.user(t, alice)
		_, err := p.keys.Backup(ctx, alice, "")
		wants(t, "none yet", err, "M_NOT_FOUND")
		create := func(want string) {
			t.Helper()
			v, err := p.keys.CreateBackup(ctx, alice, account.BackupAlgorithm, []byte(`{"public_key":"x"}`))
			if err != nil || v != want {
				t.Fatalf("version %q %v, want %q", v, err, want)
			}
		}
		create("1")
		_, err = p.keys.CreateBackup(ctx, alice, "", []byte(`{}`))
		wants(t, "no algorithm", err, "M_INVALID_PARAM")

		key := func(session string, index, forwarded int64, verified bool) account.BackupKey {
			return account.BackupKey{RoomID: "!r:x", SessionID: session, FirstMessageIndex: index, ForwardedCount: forwarded,
				IsVerified: verified, SessionData: fmt.Appendf(nil, `{"d":"%d %d %t"}`, index, forwarded, verified)}
		}
		put := func(what, version, code string, count, etag int64, keys ...account.BackupKey) {
			t.Helper()
			b, err := p.keys.PutBackupKeys(ctx, alice, version, keys)
			wants(t, what, err, code)
			if err == nil && (b.Count != count || b.ETag != etag) {
				t.Errorf("%s: count %d, etag %d, want %d and %d", what, b.Count, b.ETag, count, etag)
			}
		}
		put("first", "1", "", 1, 1, key("s", 5, 5, false))
		for i, step := range []struct {
			key   account.BackupKey
			taken bool
		}{
			{key("s", 5, 5, false), false}, // the same
			{key("s", 6, 0, false), false}, // starts later
			{key("s", 5, 6, false), false}, // forwarded more often
			{key("s", 5, 4, false), true},
			{key("s", 4, 9, false), true},
			{key("s", 9, 9, true), true}, // verified beats all
			{key("s", 0, 0, false), false},
			{key("s", 9, 10, true), false},
			{key("s", 8, 10, true), true},
		} {
			before, err := p.keys.Backup(ctx, alice, "1")
			wants(t, "backup", err, "")
			etag := before.ETag
			if step.taken {
				etag++
			}
			put(fmt.Sprint("step ", i), "1", "", 1, etag, step.key)
			got, err := p.keys.BackupKey(ctx, alice, "1", "!r:x", "s")
			wants(t, "key", err, "")
			if same := string(got.SessionData) == string(step.key.SessionData); same != step.taken && i > 0 {
				t.Errorf("step %d: the backup holds %s", i, got.SessionData)
			}
		}
		for _, bad := range []account.BackupKey{{RoomID: "", SessionID: "s"}, {RoomID: "#r:x", SessionID: "s"}, {RoomID: "!r:x"},
			{RoomID: "!r:x", SessionID: strings.Repeat("s", 256)}, {RoomID: "!" + strings.Repeat("s", 256), SessionID: "s"}, {RoomID: "!\x00", SessionID: "s", SessionData: []byte("{}")}} {
			put(fmt.Sprintf("%+v", bad), "1", "M_INVALID_PARAM", 0, 0, bad)
		}

		wants(t, "auth data", p.keys.SetBackupAuthData(ctx, alice, "1", "1", account.BackupAlgorithm, []byte(`{"public_key":"y"}`)), "")
		wants(t, "another version in the body", p.keys.SetBackupAuthData(ctx, alice, "1", "2", account.BackupAlgorithm, nil), "M_INVALID_PARAM")
		wants(t, "another algorithm", p.keys.SetBackupAuthData(ctx, alice, "1", "", "rot13", nil), "M_INVALID_PARAM")
		wants(t, "an unknown version", p.keys.SetBackupAuthData(ctx, alice, "2", "", account.BackupAlgorithm, nil), "M_NOT_FOUND")
		if b, err := p.keys.Backup(ctx, alice, ""); err != nil || string(b.AuthData) != `{"public_key":"y"}` || b.Version != 1 {
			t.Errorf("backup %+v %v", b, err)
		}

		create("2")
		put("an older version", "1", "M_WRONG_ROOM_KEYS_VERSION", 0, 0, key("t", 0, 0, false))
		_, err = p.keys.PutBackupKeys(ctx, alice, "1", nil)
		if e := mxerr.As(err); e == nil || e.Status != 403 || e.Extra["current_version"] != "2" {
			t.Errorf("%+v", e)
		}
		for _, v := range []string{"3", "0", "-1", "01", "x", "", "99999999999999999999"} {
			put("version "+v, v, "M_NOT_FOUND", 0, 0, key("t", 0, 0, false))
		}

		// many keys, read in pages and deleted in pieces
		var many []account.BackupKey
		for i := range 1203 {
			k := key(fmt.Sprintf("s%04d", i), 0, 0, false)
			k.RoomID = fmt.Sprintf("!room%d:x", i%2)
			many = append(many, k)
		}
		put("many", "2", "", 1203, 1, many...)
		read := func(room string) (n int) {
			t.Helper()
			last := ""
			err := p.keys.BackupKeys(ctx, alice, "2", room, func(keys []account.BackupKey) error {
				for _, k := range keys {
					if at := k.RoomID + k.SessionID; at <= last {
						t.Errorf("%s behind %s", at, last)
					} else {
						last = at
					}
				}
				n += len(keys)
				return nil
			})
			wants(t, "read", err, "")
			return n
		}
		if a, b, c := read(""), read("!room0:x"), read("!none:x"); a != 1203 || b != 602 || c != 0 {
			t.Errorf("read %d %d %d keys", a, b, c)
		}
		del := func(room, session string, count int64) {
			t.Helper()
			if b, err := p.keys.DeleteBackupKeys(ctx, alice, "2", room, session); err != nil || b.Count != count {
				t.Errorf("delete %s %s: %+v %v", room, session, b, err)
			}
		}
		del("!room1:x", "s0001", 1202)
		del("!room1:x", "s0001", 1202)
		del("!room1:x", "", 602)
		del("", "", 0)
		put("after deleting all", "2", "", 1, 7, key("t", 0, 0, false))

		wants(t, "delete", p.keys.DeleteBackup(ctx, alice, "2"), "")
		wants(t, "delete again", p.keys.DeleteBackup(ctx, alice, "2"), "")
		wants(t, "delete what never was", p.keys.DeleteBackup(ctx, alice, "7"), "M_NOT_FOUND")
		_, err = p.keys.Backup(ctx, alice, "2")
		wants(t, "deleted", err, "M_NOT_FOUND")
		_, err = p.keys.DeleteBackupKeys(ctx, alice, "2", "", "")
		wants(t, "keys of a deleted one", err, "M_NOT_FOUND")
		wants(t, "keys of a deleted one", p.keys.BackupKeys(ctx, alice, "2", "", nil), "M_NOT_FOUND")
		put("the older one is current again", "1", "", 2, 6, key("t", 0, 0, false))
		create("3")
	})
}

func TestToDevice(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		p := openParts(t, cfg)
		ctx := t.Context()
		p.user(t, alice, "A")
		p.user(t, bob, "B1", "B2")
		send := func(txn, code string, messages map[id.UserID]map[id.DeviceID]jsontext.Value) {
			t.Helper()
			wants(t, txn, p.keys.SendToDevice(ctx, account.ToDevice{Sender: alice, Device: "A", Type: "m.test", TxnID: txn, Messages: messages}), code)
		}
		waiting := func(device id.DeviceID, after, upto int64, limit int) string {
			t.Helper()
			events, _, err := p.keys.ToDeviceMessages(ctx, bob, device, after, upto, limit)
			wants(t, "read", err, "")
			var out []string
			for _, e := range events {
				out = append(out, strings.TrimPrefix(strings.TrimSuffix(string(e), "}"), `{"type":"m.test","sender":"@alice:example.org","content":`))
			}
			return strings.Join(out, " ")
		}
		one := func(content string) map[id.UserID]map[id.DeviceID]jsontext.Value {
			return map[id.UserID]map[id.DeviceID]jsontext.Value{bob: {"B1": jsontext.Value(content)}}
		}
		send("t1", "", one(`{"n":1}`))
		send("t1", "", one(`{"n":2}`))
		send("t2", "", map[id.UserID]map[id.DeviceID]jsontext.Value{
			bob:                   {"*": jsontext.Value(`{"n":"all"}`), "B2": jsontext.Value(`{"n":"two"}`), "B3": jsontext.Value(`{}`)},
			"@nobody:example.org": {"*": jsontext.Value(`{}`)}, "@x:far.org": {"*": jsontext.Value(`{}`)}})
		const all = 1 << 60
		if got := waiting("B1", 0, all, 10); got != `{"n":1} {"n":"all"}` {
			t.Errorf("B1: %s", got)
		}
		if got := waiting("B2", 0, all, 10); got != `{"n":"two"}` {
			t.Errorf("B2: %s", got)
		}
		if got := waiting("B3", 0, all, 10); got != "" {
			t.Errorf("B3: %s", got)
		}
		// the same transaction id with another type is another request
		wants(t, "other type", p.keys.SendToDevice(ctx, account.ToDevice{Sender: alice, Device: "A", Type: "m.other", TxnID: "t1", Messages: one(`{"n":3}`)}), "")
		wants(t, "other device", p.keys.SendToDevice(ctx, account.ToDevice{Sender: alice, Device: "A2", Type: "m.test", TxnID: "t1", Messages: one(`{"n":4}`)}), "")

		events, pos, err := p.keys.ToDeviceMessages(ctx, bob, "B1", 0, all, 2)
		if err != nil || len(events) != 2 {
			t.Fatalf("%d events, %v", len(events), err)
		}
		if got := waiting("B1", pos, all, 10); !strings.Contains(got, `{"n":3}`) || !strings.HasSuffix(got, `{"n":4}`) {
			t.Errorf("after %d: %s", pos, got)
		}
		if _, last, err := p.keys.ToDeviceMessages(ctx, bob, "B1", pos, all, 3); err != nil || last != all {
			t.Errorf("the last position is %d %v", last, err)
		}
		wants(t, "delete", p.keys.DeleteToDevice(ctx, bob, "B1", pos), "")
		wants(t, "delete again", p.keys.DeleteToDevice(ctx, bob, "B1", pos), "")
		if events, _, err := p.keys.ToDeviceMessages(ctx, bob, "B1", 0, all, 10); err != nil || len(events) != 2 {
			t.Errorf("%d left, %v", len(events), err)
		}

		send(strings.Repeat("x", 256), "M_INVALID_PARAM", one(`{}`))
		send("bad user", "M_INVALID_PARAM", map[id.UserID]map[id.DeviceID]jsontext.Value{"bob": {"*": jsontext.Value(`{}`)}})
		for _, content := range []string{`[]`, `"x"`, `1`, `null`} {
			send("content "+content, "M_BAD_JSON", one(content))
		}
		send("bad user", "", one(`{"n":5}`)) // refused requests do not count
		if got := waiting("B1", pos, all, 10); !strings.HasSuffix(got, `{"n":5}`) {
			t.Errorf("after a refused request: %s", got)
		}

		// old transaction ids are forgotten
		p.clock.Add((25 * 3600) * 1000)
		send("young", "", one(`{"n":6}`))
		wants(t, "sweep", p.keys.Sweep(ctx), "")
		send("young", "", one(`{"n":7}`))
		send("t1", "", one(`{"n":8}`))
		if got := waiting("B1", pos, all, 10); !strings.HasSuffix(got, `{"n":6} {"n":8}`) {
			t.Errorf("after the sweep: %s", got)
		}

		// a device's messages go with it, and do not come back with a new one of the same name
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() { send(fmt.Sprint("race", i), "", one(`{}`)) })
		}
		wg.Go(func() {
			wants(t, "sign out", p.accounts.EndSessions(ctx, bob, account.Ending{Devices: []id.DeviceID{"B1"}}), "")
		})
		wg.Wait()
		if _, _, err := p.accounts.SignIn(ctx, bob, account.SignIn{Device: "B1"}); err != nil {
			t.Fatal(err)
		}
		if got := waiting("B1", 0, all, 100); got != "" {
			t.Errorf("a new device got %s", got)
		}
	})
}

func TestAccountData(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		p := openParts(t, cfg)
		ctx := t.Context()
		p.user(t, alice)
		room := p.room(t, "!r:example.org", false, alice)
		get := func(roomID id.RoomID, dataType, want, code string) {
			t.Helper()
			b, err := p.data.AccountData(ctx, alice, roomID, dataType)
			wants(t, dataType, err, code)
			if string(b) != want {
				t.Errorf("%s: %s", dataType, b)
			}
		}
		get("", "m.direct", "", "M_NOT_FOUND")
		wants(t, "set", p.data.SetAccountData(ctx, alice, "m.direct", []byte(`{"a":1}`)), "")
		wants(t, "set", p.data.SetAccountDataByRoomID(ctx, alice, "!r:example.org", "org.x", []byte(`{"b":1}`)), "")
		mid := p.store.Applied()
		wants(t, "set", p.data.SetRoomAccountData(ctx, alice, room, "m.fully_read", []byte(`{"event_id":"$x"}`)), "")
		wants(t, "set", p.data.SetAccountData(ctx, alice, "m.direct", []byte(`{"a":2}`)), "")
		get("", "m.direct", `{"a":2}`, "")
		get("!r:example.org", "org.x", `{"b":1}`, "")
		get("!r:example.org", "m.direct", "", "M_NOT_FOUND")
		get("!unknown:example.org", "m.direct", "", "M_NOT_FOUND")
		get("r", "m.direct", "", "M_INVALID_PARAM")
		wants(t, "what is no room id", p.data.SetAccountDataByRoomID(ctx, alice, "#r:example.org", "x", []byte(`{}`)), "M_INVALID_PARAM")
		wants(t, "unknown room", p.data.SetAccountDataByRoomID(ctx, alice, "!x:example.org", "x", []byte(`{}`)), "M_NOT_FOUND")
		since := func(from, upto int64) string {
			t.Helper()
			list, err := p.data.AccountDataSince(ctx, alice, from, upto)
			wants(t, "since", err, "")
			var out []string
			for _, a := range list {
				out = append(out, a.RoomID+a.Type+string(a.Body))
			}
			return strings.Join(out, " ")
		}
		if got := since(0, 1<<60); got != `!r:example.orgorg.x{"b":1} !r:example.orgm.fully_read{"event_id":"$x"} m.direct{"a":2}` {
			t.Error(got)
		}
		if got := since(mid, mid+1); got != `!r:example.orgm.fully_read{"event_id":"$x"}` {
			t.Error(got)
		}
		p.member(t, room, alice, 3)
		p.write(t, func(tx *store.Tx) error { _, err := tx.ForgetRoom(string(alice), room); return err })
		if got := since(0, 1<<60); got != `m.direct{"a":2}` {
			t.Error(got)
		}

		ignored := func(want ...id.UserID) {
			t.Helper()
			got, err := p.data.Ignored(ctx, alice)
			if err != nil || len(got) != len(want) || slices.ContainsFunc(want, func(u id.UserID) bool { return !has(got, u) }) {
				t.Errorf("ignored %v %v, want %v", got, err, want)
			}
		}
		ignored()
		for _, step := range []struct {
			body string
			want []id.UserID
		}{
			{`{"ignored_users":{"@bob:example.org":{},"@alice:example.org":{}}}`, []id.UserID{bob}},
			{`{"ignored_users":{"@eve:example.org":{},"@bob:example.org":1}}`, []id.UserID{bob, eve}},
			{`{"ignored_users":["@eve:example.org"]}`, nil},
			{`{}`, nil},
		} {
			wants(t, step.body, p.data.SetAccountData(ctx, alice, "m.ignored_user_list", []byte(step.body)), "")
			ignored(step.want...)
			ignored(step.want...)
		}
		wants(t, "in a room", p.data.SetRoomAccountData(ctx, alice, room, "m.ignored_user_list", []byte(`{"ignored_users":{"@eve:example.org":{}}}`)), "")
		ignored()
	})
}

func TestTagsAtOnce(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		p := openParts(t, cfg)
		p.user(t, alice)
		p.room(t, "!r:example.org", false, alice)
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				wants(t, "set", p.data.SetTag(t.Context(), alice, "!r:example.org", fmt.Sprint("u.", i), []byte(`{"order":0.5}`)), "")
			})
		}
		wg.Wait()
		tags, err := p.data.Tags(t.Context(), alice, "!r:example.org")
		if err != nil || len(tags) != 20 || string(tags["u.7"]) != `{"order":0.5}` {
			t.Errorf("%v %v", tags, err)
		}
		big := fmt.Appendf(nil, `{"x":%q}`, strings.Repeat("x", 64<<10))
		wants(t, "too large", p.data.SetTag(t.Context(), alice, "!r:example.org", "big", big), "M_TOO_LARGE")
		// m.tag of another shape counts as no tags
		wants(t, "bad shape", p.data.SetAccountDataByRoomID(t.Context(), alice, "!r:example.org", "m.tag", []byte(`{"tags":[1]}`)), "")
		wants(t, "set", p.data.SetTag(t.Context(), alice, "!r:example.org", "u.new", []byte(`{}`)), "")
		if tags, err := p.data.Tags(t.Context(), alice, "!r:example.org"); err != nil || len(tags) != 1 {
			t.Errorf("%v %v", tags, err)
		}
	})
}

func TestFilters(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		p := openParts(t, cfg)
		ctx := t.Context()
		p.user(t, alice)
		first, err := p.data.CreateFilter(ctx, alice, []byte(`{"room":{"timeline":{"limit":5,"types":["a"]}},"x":0.5}`))
		wants(t, "create", err, "")
		second, err := p.data.CreateFilter(ctx, alice, []byte(` {"x":0.5, "room":{"timeline":{"types":["a"],"limit":5}}}`))
		if err != nil || first != second || strings.HasPrefix(first, "{") || first == "" {
			t.Errorf("ids %q and %q, %v", first, second, err)
		}
		third, err := p.data.CreateFilter(ctx, alice, []byte(`{"room":{"timeline":{"limit":6,"types":["a"]}}}`))
		if err != nil || third == first {
			t.Errorf("another filter has the id %q, %v", third, err)
		}
		if b, err := p.data.FilterDefinition(ctx, alice, first); err != nil || string(b) != `{"room":{"timeline":{"limit":5,"types":["a"]}},"x":0.5}` {
			t.Errorf("definition %s %v", b, err)
		}
		_, err = p.data.FilterDefinition(ctx, bob, first)
		wants(t, "of another user", err, "M_NOT_FOUND")
		for _, tc := range []struct {
			param, code string
			limit       int
		}{
			{"", "", 10}, {"{}", "", 10}, {first, "", 5}, {first, "", 5}, {third, "", 6},
			{` {"room":{"timeline":{"limit":3}}}`, "", 3}, {"nope", "M_INVALID_PARAM", 0}, {"{", "M_NOT_JSON", 0}, {`{"room":1}`, "M_BAD_JSON", 0}, {"a\x00", "M_INVALID_PARAM", 0},
		} {
			f, err := p.data.Filter(ctx, alice, tc.param)
			wants(t, tc.param, err, tc.code)
			if err == nil && f.Room.Timeline.LimitOr(10) != tc.limit {
				t.Errorf("%s: limit %d", tc.param, f.Room.Timeline.LimitOr(10))
			}
		}
		_, err = p.data.CreateFilter(ctx, alice, []byte(`{"room":{"rooms":["x"]}}`))
		wants(t, "bad filter", err, "M_BAD_JSON")
	})
}
