package groups

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
)

// world is rooms, accounts and groups on one database.
type world struct {
	*Groups
	t        testing.TB
	rooms    *room.Rooms
	accounts *account.Accounts
	store    *store.Store
	stop     func()
}

// start opens a world; background: what runs by itself runs.
func start(t testing.TB, db store.Config, c Config, background bool) *world {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	log := slog.New(slog.DiscardHandler)
	st, err := store.Open(ctx, db, log)
	if err != nil {
		t.Fatal(err)
	}
	if c.ServiceAccount == "" {
		c.ServiceAccount, c.ServiceName = "service", "The service"
	}
	key := event.SigningKey{KeyID: "ed25519:1", Private: ed25519.NewKeyFromSeed(make([]byte, 32))}
	w := &world{t: t, store: st}
	w.rooms = room.New(room.Deps{Store: st, ServerName: "test", Key: key, Logger: log})
	w.accounts = account.New(account.Deps{Store: st, ServerName: "test", Logger: log})
	if w.Groups, err = New(Deps{Store: st, Rooms: w.rooms, Accounts: w.accounts, ServerName: "test", Config: c, Logger: log}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 3)
	running := []func(context.Context) error{
		func(ctx context.Context) error {
			return st.Follow(ctx, []store.Listener{w.rooms.Listener(), w.accounts.Listener()}, func(string, string) {})
		},
		w.rooms.Run,
	}
	if background {
		running = append(running, w.Groups.Run)
	}
	for i, run := range running {
		go func() { done <- run(ctx) }()
		if i == 0 {
			<-st.Following()
		}
	}
	w.stop = func() {
		if st == nil {
			return
		}
		cancel()
		for range running {
			<-done
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
		st = nil
	}
	t.Cleanup(func() { w.stop() })
	return w
}

func (w *world) user(local string) id.UserID {
	w.t.Helper()
	u, err := w.accounts.CreateUser(w.t.Context(), account.NewUser{Localpart: local, DisplayName: "Name of " + local})
	if err != nil {
		w.t.Fatal(err)
	}
	return u.ID
}

func (w *world) users(locals ...string) []id.UserID {
	w.t.Helper()
	var out []id.UserID
	for _, l := range locals {
		out = append(out, w.user(l))
	}
	return out
}

// apply plans and applies, and wants that the plan says what is then done.
func (w *world) apply(source string, all ...Group) Report {
	w.t.Helper()
	p, err := w.Plan(w.t.Context(), source, all)
	if err != nil {
		w.t.Fatal(err)
	}
	r, err := w.Apply(w.t.Context(), p, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if len(r.Errors) > 0 {
		w.t.Errorf("errors: %v", r.Errors)
	}
	if r.Counts != p.Counts {
		w.t.Errorf("done: %+v\nplanned: %+v\n%s", r.Counts, p.Counts, p)
	}
	return r
}

// find gives the room of a target.
func (w *world) find(target string) *room.Room {
	w.t.Helper()
	var rows []store.GroupRoom
	err := w.store.Read(w.t.Context(), func(tx *store.Tx) (err error) {
		rows, err = tx.GroupRooms()
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, r := range rows {
		if r.Target == target {
			rm, err := w.rooms.Room(w.t.Context(), r.RoomID)
			if err != nil {
				w.t.Fatal(err)
			}
			return rm
		}
	}
	w.t.Fatalf("there is no room for %s among %v", target, rows)
	return nil
}

func (w *world) joined(target string) string {
	w.t.Helper()
	var out []string
	for _, u := range w.find(target).Joined() {
		out = append(out, u.Localpart())
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func (w *world) wantJoined(target, want string) {
	w.t.Helper()
	if got := w.joined(target); got != want {
		w.t.Errorf("in %s are %q, want %q", target, got, want)
	}
}

func (w *world) stateOf(target, evType, stateKey string) string {
	w.t.Helper()
	e, err := w.find(target).StateEvent(w.t.Context(), evType, stateKey)
	if err != nil {
		w.t.Fatal(err)
	}
	if e == nil {
		return ""
	}
	return string(e.PDU.Content())
}

func (w *world) audited(action string) int {
	w.t.Helper()
	n := 0
	err := w.store.Read(w.t.Context(), func(tx *store.Tx) error {
		rows, err := tx.AuditEntries(store.AuditFilter{Actions: []string{action}}, false, 10000)
		n = len(rows)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func each(t *testing.T, c Config, background bool, fn func(t *testing.T, w *world)) {
	storetest.Each(t, func(t *testing.T, db store.Config) { fn(t, start(t, db, c, background)) })
}

func TestLifeOfARoom(t *testing.T) {
	c := Config{Rules: []Rule{{
		ID: "g", Source: "corp", Kind: KindGroup, NameRegexp: "eng-(.*)", RoomName: "{{index .Match 1}} engineers", Topic: "{{.ID}}",
		Alias: "eng-{{.Slug}}", Allow: []string{"@guest-*:test"},
	}}}
	each(t, c, false, func(t *testing.T, w *world) {
		u := w.users("ann", "bob", "cem", "guest-1", "eve")
		eng := Group{ExternalID: "1", Name: "eng-Core", Members: u[:2]}
		other := Group{ExternalID: "2", Name: "sales", Members: u[:3]}

		p, err := w.Plan(t.Context(), "corp", []Group{eng, other})
		if err != nil {
			t.Fatal(err)
		}
		if p.Counts != (Counts{Groups: 2, Create: 1, Join: 2}) || !strings.Contains(p.String(), "@ann:test") {
			t.Errorf("plan %+v\n%s", p.Counts, p)
		}
		if b, err := json.Marshal(p); err != nil || gjson.GetBytes(b, "rooms.0.join.1").Str != "@bob:test" {
			t.Errorf("plan as JSON: %s %v", b, err)
		}
		if again, _ := w.Plan(t.Context(), "corp", []Group{eng, other}); again.Counts != p.Counts {
			t.Errorf("a plan had an effect: %+v", again.Counts)
		}

		w.apply("corp", eng, other)
		const target = "g/corp/1"
		w.wantJoined(target, "ann bob service")
		rm := w.find(target)
		if rm.Name() != "Core engineers" || rm.CanonicalAlias() != "#eng-eng-core:test" || rm.Topic() != "1" {
			t.Errorf("name %q alias %q topic %q", rm.Name(), rm.CanonicalAlias(), rm.Topic())
		}
		if rm.Creator() != "@service:test" || rm.PowerLevels().User("@ann:test") != 0 {
			t.Errorf("creator %s, level %d", rm.Creator(), rm.PowerLevels().User("@ann:test"))
		}
		e, _ := rm.MemberEvent(t.Context(), "@ann:test")
		if e.PDU.Sender() != "@ann:test" || gjson.GetBytes(e.PDU.Content(), "displayname").Str != "Name of ann" {
			t.Errorf("ann's membership: %s %s", e.PDU.Sender(), e.PDU.Content())
		}
		if again := w.apply("corp", eng, other); again.Counts != (Counts{}) {
			t.Errorf("nothing changed, but %+v", again.Counts)
		}

		// mover, joiner, rename; the allow-listed guest stays, the other stranger does not
		for _, stranger := range u[3:] {
			for _, d := range []room.Draft{
				member("@service:test", stranger, store.Profile{}, memberContent{Membership: "invite"}),
				member(stranger, stranger, store.Profile{}, memberContent{Membership: "join"}),
			} {
				if _, err := w.rooms.Send(t.Context(), rm.ID(), d); err != nil {
					t.Fatal(err)
				}
			}
		}
		eng.Members, eng.Name = u[1:3], "eng-Kernel"
		r := w.apply("corp", eng, other)
		if r.Counts != (Counts{Groups: 1, Rename: 1, Join: 1, Leave: 2}) {
			t.Errorf("counts %+v", r.Counts)
		}
		w.wantJoined(target, "bob cem guest-1 service")
		if w.find(target).ID() != rm.ID() || rm.Name() != "Kernel engineers" {
			t.Errorf("room %s %q, was %s", w.find(target).ID(), rm.Name(), rm.ID())
		}
		if got := w.stateOf(target, "m.room.canonical_alias", ""); !strings.Contains(got, "#eng-eng-kernel:test") || !strings.Contains(got, "#eng-eng-core:test") {
			t.Errorf("aliases %s", got)
		}
		e, _ = rm.MemberEvent(t.Context(), "@ann:test")
		if e.PDU.Sender() != "@service:test" || gjson.GetBytes(e.PDU.Content(), "reason").Str != `no longer in the group "Kernel engineers"` {
			t.Errorf("ann was taken out by %s: %s", e.PDU.Sender(), e.PDU.Content())
		}

		// the group goes and comes back: the room is the same
		w.apply("corp", other)
		w.wantJoined(target, "guest-1 service")
		w.apply("corp", eng, other)
		w.wantJoined(target, "bob cem guest-1 service")
		if w.find(target).ID() != rm.ID() {
			t.Error("the group that came back has another room")
		}
		if n := w.audited("group.member.joined"); n != 5 {
			t.Errorf("%d audit entries of joins, want 5", n)
		}
		if n := w.audited("group.member.removed"); n != 4 {
			t.Errorf("%d audit entries of removals, want 4", n)
		}
	})
}

func TestTreeOfSpaces(t *testing.T) {
	c := Config{
		Spaces: []Space{{ID: "company", Name: "Corp", Alias: "corp"}},
		Rules: []Rule{
			{ID: "unit", Kind: KindUnit, Make: MakeSpace, Parent: ParentUnit, Root: "company"},
			{ID: "team", Kind: KindGroup, Parent: ParentUnit, Root: "company"},
		},
	}
	each(t, c, false, func(t *testing.T, w *world) {
		u := w.users("ann", "bob", "cem")
		all := []Group{
			{ExternalID: "eng", Kind: KindUnit, Name: "Engineering", Members: u[:1]},
			{ExternalID: "core", Kind: KindUnit, Name: "Core", ParentID: "eng", Members: u[1:2]},
			{ExternalID: "db", Name: "Databases", ParentID: "core", Members: u[1:3]},
			{ExternalID: "hr", Kind: KindUnit, Name: "HR"},
		}
		w.apply("corp", all...)
		w.wantJoined("unit/corp/eng", "ann bob service") // who is in a unit below is in the unit above
		w.wantJoined("unit/corp/core", "bob service")
		w.wantJoined("team/corp/db", "bob cem service")
		w.wantJoined("space/company", "ann bob cem service")
		if w.find("unit/corp/eng").Type() != "m.space" || w.find("team/corp/db").Type() != "" {
			t.Error("types of rooms")
		}
		child := func(space, target string) bool {
			via := gjson.Get(w.stateOf(space, "m.space.child", string(w.find(target).ID())), "via.0").Str == "test"
			parent := gjson.Get(w.stateOf(target, "m.space.parent", string(w.find(space).ID())), "via.0").Str == "test"
			return via && parent
		}
		for space, targets := range map[string][]string{
			"space/company": {"unit/corp/eng"}, "unit/corp/eng": {"unit/corp/core"}, "unit/corp/core": {"team/corp/db"},
		} {
			for _, x := range targets {
				if !child(space, x) {
					t.Errorf("%s is not in the space %s", x, space)
				}
			}
		}
		// the unit moves to the top, the team into HR
		all[1].ParentID, all[2].ParentID, all[3].Members = "", "hr", u[2:]
		w.apply("corp", all...)
		w.wantJoined("unit/corp/eng", "ann service")
		if child("unit/corp/eng", "unit/corp/core") || !child("space/company", "unit/corp/core") || !child("unit/corp/hr", "team/corp/db") {
			t.Error("the spaces did not follow")
		}
	})
}

func TestLevelsAndSharedRooms(t *testing.T) {
	c := Config{Rules: []Rule{
		{ID: "all", NameRegexp: "staff-.*", Shared: true, RoomName: "Everyone", KeepExtra: true},
		{ID: "leads", NameRegexp: "leads", SharedWith: "all", PowerLevel: 50},
	}}
	each(t, c, false, func(t *testing.T, w *world) {
		u := w.users("ann", "bob", "cem", "dan")
		all := []Group{
			{ExternalID: "1", Name: "staff-a", Members: u[:2]}, {ExternalID: "2", Name: "staff-b", Members: u[2:3]},
			{ExternalID: "3", Name: "leads", Members: u[:1]},
		}
		w.apply("corp", all...)
		const target = "shared/all"
		w.wantJoined(target, "ann bob cem service")
		levels := func() string {
			p := w.find(target).PowerLevels()
			return fmt.Sprint(p.User(u[0]), p.User(u[1]), p.User(u[2]))
		}
		if levels() != "50 0 0" || w.find(target).Name() != "Everyone" {
			t.Errorf("levels %s", levels())
		}
		// somebody who was asked in by a lead stays (keep_extra); the lead changes
		rm := w.find(target)
		for _, d := range []room.Draft{
			member(u[0], u[3], store.Profile{}, memberContent{Membership: "invite"}), member(u[3], u[3], store.Profile{}, memberContent{Membership: "join"}),
		} {
			if _, err := w.rooms.Send(t.Context(), rm.ID(), d); err != nil {
				t.Fatal(err)
			}
		}
		all[2].Members = u[2:3]
		w.apply("corp", all...)
		if levels() != "0 0 50" {
			t.Errorf("levels %s", levels())
		}
		all[1].Members, all[2].Members = nil, nil
		w.apply("corp", all...)
		w.wantJoined(target, "ann bob dan service")
		if levels() != "0 0 0" {
			t.Errorf("levels %s", levels())
		}
		// groups of another source are in the same room, and do not go with the first one's
		w.apply("scim", Group{ExternalID: "9", Name: "staff-c", Members: u[2:3]})
		w.apply("corp")
		w.wantJoined(target, "cem dan service")
	})
}

// TestPickedUpLater has members who have no account, are locked, or are banned.
func TestPickedUpLater(t *testing.T) {
	each(t, Config{Rules: []Rule{{ID: "g"}}}, true, func(t *testing.T, w *world) {
		ann, bob := w.user("ann"), w.user("bob")
		if err := w.accounts.Lock(t.Context(), bob, true); err != nil {
			t.Fatal(err)
		}
		g := Group{ExternalID: "1", Name: "G", Members: []id.UserID{ann, bob, "@new:test"}}
		p, err := w.Plan(t.Context(), "corp", []Group{g})
		if err != nil || p.Counts.Skipped != 2 || p.Counts.Join != 1 {
			t.Fatalf("plan %+v %v", p.Counts, err)
		}
		if err := w.Change(t.Context(), "corp", g); err != nil {
			t.Fatal(err)
		}
		w.wantJoined("g/corp/1", "ann service")
		w.user("new")
		if err := w.accounts.Lock(t.Context(), bob, false); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "both are in", func() bool { return w.joined("g/corp/1") == "ann bob new service" })

		// a ban by a moderator stands
		if _, err := w.rooms.Send(t.Context(), w.find("g/corp/1").ID(), member("@service:test", ann, store.Profile{}, memberContent{Membership: "ban"})); err != nil {
			t.Fatal(err)
		}
		r, err := w.SettleAll(t.Context())
		if err != nil || len(r.Errors) > 0 || r.Skipped != 1 {
			t.Errorf("%+v %v", r, err)
		}
		w.wantJoined("g/corp/1", "bob new service")

		// an edit, followed in the background
		err = w.Edit(t.Context(), "corp", "1", func(_ *store.Tx, now *Group, found bool) (bool, error) {
			now.Members = slices.DeleteFunc(now.Members, func(u id.UserID) bool { return u == bob })
			return found, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "bob is out", func() bool { return w.joined("g/corp/1") == "new service" })
		if err := w.Put(t.Context(), "corp", Group{ExternalID: "1", Gone: true}); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "all are out", func() bool { return w.joined("g/corp/1") == "service" })
		if _, found, err := w.Find(t.Context(), "corp", "1"); err != nil || found {
			t.Errorf("the group is still there: %v", err)
		}
	})
}

func TestInvitations(t *testing.T) {
	each(t, Config{Rules: []Rule{{ID: "g", Join: JoinInvite}}}, false, func(t *testing.T, w *world) {
		u := w.users("ann", "bob", "cem")
		g := Group{ExternalID: "1", Name: "G", Members: u}
		if r := w.apply("corp", g); r.Invite != 3 {
			t.Errorf("%+v", r)
		}
		rm := w.find("g/corp/1")
		for _, d := range []room.Draft{
			member(u[0], u[0], store.Profile{}, memberContent{Membership: "join"}),
			member(u[1], u[1], store.Profile{}, memberContent{Membership: "leave"}), // declines
		} {
			if _, err := w.rooms.Send(t.Context(), rm.ID(), d); err != nil {
				t.Fatal(err)
			}
		}
		if r := w.apply("corp", g); r.Invite != 0 || r.Skipped != 1 {
			t.Errorf("who declined was invited again: %+v", r)
		}
		g.Members = nil
		w.apply("corp", g)
		if len(rm.Invited()) != 0 || w.joined("g/corp/1") != "service" {
			t.Errorf("invited %v, joined %s", rm.Invited(), w.joined("g/corp/1"))
		}
		g.Members = u
		if r := w.apply("corp", g); r.Invite != 3 {
			t.Errorf("who is in the group again was not invited: %+v", r)
		}
	})
}

// TestInterrupted stops in the middle, and after a room was made but not noted.
func TestInterrupted(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db store.Config) {
		c := Config{Rules: []Rule{{ID: "g"}}}
		w := start(t, db, c, false)
		var all []Group
		var names []string
		for i := range 40 {
			names = append(names, fmt.Sprintf("u%02d", i))
		}
		u := w.users(names...)
		for i := range 5 {
			all = append(all, Group{ExternalID: fmt.Sprint(i), Name: fmt.Sprint("G", i), Members: u})
		}
		p, err := w.Plan(t.Context(), "corp", all)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		_, err = w.Apply(ctx, p, func(r Report) {
			if r.Create > 0 {
				cancel()
			}
		})
		cancel()
		if err == nil {
			t.Fatal("the interrupted run ended well")
		}
		rows := func() (n int, rooms map[id.RoomID]bool) {
			rooms = map[id.RoomID]bool{}
			su, err := w.rooms.User(t.Context(), "@service:test")
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range su.Rooms() {
				rooms[r.Room.ID()] = true
			}
			return len(rooms), rooms
		}
		made, before := rows()
		// one of the rooms was made, but that was not noted
		err = w.store.Write(t.Context(), func(tx *store.Tx) error {
			list, err := tx.GroupRooms()
			if err != nil || len(list) == 0 {
				return fmt.Errorf("%v: %w", list, err)
			}
			list[0].RoomID = ""
			return tx.SaveGroupRoom(list[0])
		})
		if err != nil {
			t.Fatal(err)
		}
		w.stop()

		w = start(t, db, c, true) // what is open is done by itself
		testkit.Eventually(t, "all are in all rooms", func() bool {
			for i := range 5 {
				var room id.RoomID
				_ = w.store.Read(t.Context(), func(tx *store.Tx) error {
					list, err := tx.GroupRooms()
					for _, r := range list {
						if r.Target == fmt.Sprint("g/corp/", i) {
							room = r.RoomID
						}
					}
					return err
				})
				if room == "" || w.find(fmt.Sprint("g/corp/", i)).JoinedCount() != 41 {
					return false
				}
			}
			return true
		})
		n, after := rows()
		if n != 5 {
			t.Errorf("%d rooms were made for 5 groups (%d before the interruption)", n, made)
		}
		for r := range maps.Keys(before) {
			if !after[r] {
				t.Errorf("room %s was lost", r)
			}
		}
	})
}

// TestDeletedRoom shows that a group whose room an administrator deleted gets another one.
func TestDeletedRoom(t *testing.T) {
	each(t, Config{Rules: []Rule{{ID: "g", PowerLevel: 20}}}, false, func(t *testing.T, w *world) {
		g := Group{ExternalID: "1", Name: "G", Members: w.users("ann", "bob")}
		w.apply("corp", g)
		old := w.find("g/corp/1")
		// what is noted leads nowhere
		err := w.store.Write(t.Context(), func(tx *store.Tx) error {
			list, err := tx.GroupRooms()
			if err != nil {
				return err
			}
			list[0].RoomID = "!deleted"
			return tx.SaveGroupRoom(list[0])
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.rooms.Send(t.Context(), old.ID(), member("@service:test", "@service:test", store.Profile{}, memberContent{Membership: "leave"})); err != nil {
			t.Fatal(err)
		}
		if r := w.apply("corp", g); r.Create != 1 || r.Join != 2 || r.Levels != 2 {
			t.Errorf("%+v", r)
		}
		w.wantJoined("g/corp/1", "ann bob service")
		if rm := w.find("g/corp/1"); rm.ID() == old.ID() || rm.PowerLevels().User("@ann:test") != 20 {
			t.Errorf("room %s, was %s", rm.ID(), old.ID())
		}
	})
}

// TestTwoProcesses lets two processes apply the same groups at once.
func TestTwoProcesses(t *testing.T) {
	db := store.Config{DataDir: t.TempDir(), URL: storetest.Postgres(t)}
	c := Config{Rules: []Rule{{ID: "g"}}}
	a, b := start(t, db, c, true), start(t, db, c, true)
	u := a.users("ann", "bob")
	done := make(chan error, 2)
	for i, w := range []*world{a, b} {
		go func() {
			done <- w.Change(t.Context(), "corp", Group{ExternalID: "1", Name: "G", Members: u[:i+1]})
		}()
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Change(t.Context(), "corp", Group{ExternalID: "1", Name: "G", Members: u}); err != nil {
		t.Fatal(err)
	}
	if err := a.store.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.wantJoined("g/corp/1", "ann bob service")
	s, err := a.rooms.User(t.Context(), "@service:test")
	if err != nil || len(s.Rooms()) != 1 {
		t.Errorf("%d rooms for one group, %v", len(s.Rooms()), err)
	}
}

func TestNestedGroupsAndCycles(t *testing.T) {
	gr := &graph{groups: map[ref]*Group{}}
	for _, x := range []Group{
		{ExternalID: "a", Members: []id.UserID{"@a:x"}, Nested: []string{"b", "a", "missing"}},
		{ExternalID: "b", Members: []id.UserID{"@b:x"}, Nested: []string{"c"}},
		{ExternalID: "c", Members: []id.UserID{"@c:x"}, Nested: []string{"a"}},
		{ExternalID: "d", Members: []id.UserID{"@d:x"}, Nested: []string{"c"}},
		{ExternalID: "u1", Kind: KindUnit, ParentID: "u2"},
		{ExternalID: "u2", Kind: KindUnit, ParentID: "u1", Members: []id.UserID{"@u:x"}},
	} {
		gr.groups[x.ref()] = &x
	}
	gr.link()
	for group, want := range map[string]string{
		"a": "@a:x @b:x @c:x", "b": "@a:x @b:x @c:x", "c": "@a:x @b:x @c:x", "d": "@a:x @b:x @c:x @d:x", "u1": "@u:x", "u2": "@u:x",
	} {
		var got []string
		for u := range gr.members(ref{"", group}, false) {
			got = append(got, string(u))
		}
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("in %s are %v, want %s", group, got, want)
		}
	}
	if n := len(gr.affected([]ref{{"", "b"}})); n != 4 {
		t.Errorf("%d groups are affected by b, want 4", n)
	}
	all := map[string]*target{"x": {parent: "y"}, "y": {parent: "x"}}
	setDepths(all)
	if all["x"].parent != "" && all["y"].parent != "" {
		t.Error("spaces lie in each other")
	}
}

func TestRules(t *testing.T) {
	for _, tc := range []struct {
		rule Rule
		g    Group
		want bool
	}{
		{Rule{}, Group{}, true},
		{Rule{Source: "a"}, Group{Source: "b"}, false},
		{Rule{Kind: KindUnit}, Group{Kind: KindGroup}, false},
		{Rule{NameRegexp: "a.c"}, Group{Name: "abc"}, true},
		{Rule{NameRegexp: "a.c"}, Group{Name: "abcd"}, false},
		{Rule{NameRegexp: "a|b"}, Group{Name: "bx"}, false},
		{Rule{DN: "OU=Units, dc=corp"}, Group{DN: "cn=x,ou=units,DC=Corp"}, true},
		{Rule{DN: "ou=units,dc=corp"}, Group{DN: `cn=a\,ou=units,dc=corp`}, false},
		{Rule{DN: "ou=units,dc=corp"}, Group{}, false},
	} {
		tc.rule.ID = "r"
		c := Config{ServiceAccount: "s", Rules: []Rule{tc.rule}}
		rules, path, err := c.compile()
		if err != nil {
			t.Fatalf("%s %v", path, err)
		}
		if got := rules[0].matches(&tc.g); got != tc.want {
			t.Errorf("%+v matches %+v: %v", tc.rule, tc.g, got)
		}
	}
	for want, c := range map[string]Config{
		"service_account":        {ServiceAccount: "A b"},
		"spaces[0].id":           {Spaces: []Space{{ID: "unit", Name: "x"}}},
		"spaces[1].id":           {Spaces: []Space{{ID: "a", Name: "x"}, {ID: "a", Name: "y"}}},
		"spaces[0].parent":       {Spaces: []Space{{ID: "a", Name: "x", Parent: "b"}}},
		"rules[0].id":            {Rules: []Rule{{}}},
		"rules[1].id":            {Rules: []Rule{{ID: "a"}, {ID: "a"}}},
		"rules[0].make":          {Rules: []Rule{{ID: "a", Make: "house"}}},
		"rules[0].join":          {Rules: []Rule{{ID: "a", Join: "maybe"}}},
		"rules[0].name_regexp":   {Rules: []Rule{{ID: "a", NameRegexp: "("}}},
		"rules[0].alias":         {Rules: []Rule{{ID: "a", Alias: "{{.Nome}}"}}},
		"rules[0].parent":        {Rules: []Rule{{ID: "a", Parent: "x"}}},
		"rules[0].root":          {Rules: []Rule{{ID: "a", Root: "x"}}},
		"rules[0].power_level":   {Rules: []Rule{{ID: "a", PowerLevel: 100}}},
		"rules[0].shared_with":   {Rules: []Rule{{ID: "a", SharedWith: "b"}}},
		"rules[0].allow[1]":      {Rules: []Rule{{ID: "a", Allow: []string{"@a:b", "x"}}}},
		"additional_creators[0]": {AdditionalCreators: []id.UserID{"x"}},
	} {
		if c.ServiceAccount == "" {
			c.ServiceAccount = "s"
		}
		if path, err := c.Check(); path != want || err == nil {
			t.Errorf("got %s %v, want %s", path, err, want)
		}
	}
}

// TestOthersServiceAccount shows that a person's account is not taken for the server's own.
func TestOthersServiceAccount(t *testing.T) {
	each(t, Config{Rules: []Rule{{ID: "g"}}}, false, func(t *testing.T, w *world) {
		u := w.users("ann", "service")
		p, err := w.Plan(t.Context(), "corp", []Group{{ExternalID: "1", Name: "G", Members: u}})
		if err != nil {
			t.Fatal(err)
		}
		r, err := w.Apply(t.Context(), p, nil)
		if err != nil || len(r.Errors) != 1 || !strings.Contains(r.Errors[0], "belongs to a person") {
			t.Errorf("%+v %v", r, err)
		}
	})
}
