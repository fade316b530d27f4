package hooks

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"

	"github.com/go-json-experiment/json"
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

const (
	device  = "MOOTHALLHOOK" // what the transaction ids of hooks belong to
	botType = "bot"          // user_type of accounts that belong to no person
)

// bot is the account that a hook writes as. It is made when it is first needed, without a password.
func (h *Hooks) bot(ctx context.Context, hk *store.Hook) (id.UserID, error) {
	seen := fmt.Sprintf("%s/%d", hk.ID, hk.Created)
	h.mu.Lock()
	user, known := h.bots[seen]
	h.mu.Unlock()
	if known {
		return user, nil
	}
	local := h.d.Config.BotPrefix + hk.ID
	user = h.d.Accounts.UserID(local)
	u, err := h.d.Accounts.User(ctx, user)
	if mxerr.Is(err, "M_NOT_FOUND") {
		u, err = h.d.Accounts.CreateUser(ctx, account.NewUser{Localpart: local, DisplayName: hk.DisplayName, Type: botType, Unreserved: true})
		if mxerr.Is(err, "M_USER_IN_USE") { // another process was quicker
			u, err = h.d.Accounts.User(ctx, user)
		}
	}
	switch {
	case err != nil:
		return "", fmt.Errorf("the account %s of a hook: %w", user, err)
	case u.Type != botType:
		return "", mxerr.Forbidden(fmt.Sprintf("the account %s belongs to a person: the hook needs another name", user))
	case u.Deactivated || u.Locked:
		return "", mxerr.Forbidden(fmt.Sprintf("the account %s is locked or deactivated", user))
	}
	if _, err := h.d.Profiles.SetAll(ctx, user, map[string]string{"displayname": hk.DisplayName, "avatar_url": hk.AvatarURL}); err != nil {
		return "", fmt.Errorf("the profile of %s: %w", user, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.bots) > 10_000 {
		clear(h.bots)
	}
	h.bots[seen] = user
	return user, nil
}

// alone lets one at a time prepare a hook's rooms in this process.
func (h *Hooks) alone(hookID string) func() {
	h.mu.Lock()
	m := h.making[hookID]
	if m == nil {
		m = &sync.Mutex{}
		h.making[hookID] = m
	}
	h.mu.Unlock()
	m.Lock()
	return m.Unlock
}

// place gives the room that a hook writes in, and who writes there. The account is in the room afterwards.
func (h *Hooks) place(ctx context.Context, hk *store.Hook) (*room.Room, id.UserID, error) {
	bot, err := h.bot(ctx, hk)
	if err != nil {
		return nil, "", err
	}
	rm, err := h.room(ctx, hk, bot)
	if err != nil {
		return nil, "", err
	}
	if rm.Membership(bot) == room.MembershipJoin {
		return rm, bot, nil
	}
	defer h.alone(hk.ID)()
	return rm, bot, h.enter(ctx, hk, rm, bot)
}

func (h *Hooks) room(ctx context.Context, hk *store.Hook, bot id.UserID) (*room.Room, error) {
	switch hk.Target[0] {
	case '@':
		return h.direct(ctx, hk, bot)
	case '#':
		var a store.Alias
		var found bool
		err := h.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
			var err error
			a, found, err = tx.AliasByName(hk.Target)
			return err
		})
		if err != nil {
			return nil, err
		}
		if !found {
			return nil, mxerr.NotFound(fmt.Sprintf("the hook's room %s does not exist", hk.Target))
		}
		return h.d.Rooms.RoomByNID(ctx, a.Room)
	}
	rm, err := h.d.Rooms.Room(ctx, id.RoomID(hk.Target))
	if mxerr.Is(err, "M_NOT_FOUND") {
		return nil, mxerr.NotFound(fmt.Sprintf("the hook's room %s does not exist", hk.Target))
	}
	return rm, err
}

func memberContent(membership, name, avatar string) []byte {
	c := map[string]string{"membership": membership}
	if name != "" {
		c["displayname"] = name
	}
	if avatar != "" {
		c["avatar_url"] = avatar
	}
	return encode(c)
}

func encode(v any) []byte {
	b, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		return []byte(`{}`) // maps of texts, numbers and lists always marshal
	}
	return b
}

// enter brings a hook's account into its room: by itself where it may, else invited by whoever made the hook, or by the
// server's own account where that is in the room.
func (h *Hooks) enter(ctx context.Context, hk *store.Hook, rm *room.Room, bot id.UserID) error {
	if rm.Membership(bot) == room.MembershipJoin {
		return nil
	}
	key := string(bot)
	join := room.Draft{Type: "m.room.member", StateKey: &key, Content: memberContent("join", hk.DisplayName, hk.AvatarURL), Sender: bot}
	if m := rm.Membership(bot); m == room.MembershipInvite || rm.JoinRule() == "public" && m != room.MembershipBan {
		_, err := h.d.Rooms.Send(ctx, rm.ID(), join)
		return err
	}
	inviters := []id.UserID{hk.Creator}
	if service, err := h.d.Service(ctx); err == nil {
		inviters = append(inviters, service)
	} else if mxerr.As(err) == nil {
		return err
	}
	for _, by := range inviters {
		if by == "" || rm.Membership(by) != room.MembershipJoin {
			continue
		}
		invite := room.Draft{Type: "m.room.member", StateKey: &key, Content: memberContent("invite", hk.DisplayName, hk.AvatarURL), Sender: by}
		_, err := h.d.Rooms.SendAll(ctx, rm.ID(), []room.Draft{invite, join})
		if err == nil || mxerr.As(err) == nil {
			return err
		}
	}
	return mxerr.Forbidden(fmt.Sprintf("the hook writes as %s, which is not in the room: invite it there", bot))
}

// direct is the room in which a hook writes to a user. It is made where it is missing; a user who left it is brought back.
func (h *Hooks) direct(ctx context.Context, hk *store.Hook, bot id.UserID) (*room.Room, error) {
	user := id.UserID(hk.Target)
	if hk.RoomID != "" {
		rm, err := h.d.Rooms.Room(ctx, hk.RoomID)
		if err == nil && rm.Membership(user) == room.MembershipJoin {
			return rm, nil
		}
	}
	defer h.alone(hk.ID)()
	now, _, err := h.read(ctx, hk.ID) // another request may have made it
	if err != nil {
		return nil, err
	}
	u, err := h.d.Accounts.User(ctx, user)
	if mxerr.Is(err, "M_NOT_FOUND") || err == nil && (u.Deactivated || u.Locked) {
		return nil, mxerr.Forbidden(fmt.Sprintf("the hook writes to %s, whose account does not exist or cannot be used", user))
	}
	if err != nil {
		return nil, err
	}
	p, err := h.d.Profiles.Get(ctx, user)
	if err != nil {
		return nil, err
	}
	key := string(user)
	entrance := []room.Draft{
		{Type: "m.room.member", StateKey: &key, Content: []byte(`{"is_direct":true,"membership":"invite"}`), Sender: bot},
		{Type: "m.room.member", StateKey: &key, Content: memberContent("join", p.DisplayName, p.AvatarURL), Sender: user},
	}
	if now.RoomID != "" {
		rm, err := h.d.Rooms.Room(ctx, now.RoomID)
		if err == nil && rm.Membership(user) != room.MembershipJoin && rm.Membership(bot) == room.MembershipJoin {
			_, err = h.d.Rooms.SendAll(ctx, rm.ID(), entrance)
		}
		if err == nil {
			return rm, nil
		}
		if mxerr.As(err) == nil {
			return nil, err
		}
	}
	return h.makeDirect(ctx, hk, now.RoomID, bot, entrance)
}

// makeDirect makes the room of a hook and its user, in the place of one that cannot be used any more.
func (h *Hooks) makeDirect(ctx context.Context, hk *store.Hook, gone id.RoomID, bot id.UserID, entrance []room.Draft) (*room.Room, error) {
	v, _ := event.LookupVersion(event.DefaultVersion)
	create := map[string]any{"room_version": v.ID}
	if !v.ImplicitCreator {
		create["creator"] = bot
	}
	levels := map[string]any{"users": map[string]int{}, "state_default": 100, "invite": 100, "kick": 100, "ban": 100}
	if !v.PrivilegedCreators {
		levels["users"] = map[string]int{string(bot): 100}
	}
	state := func(evType, key string, content any) room.Draft {
		return room.Draft{Type: evType, StateKey: &key, Content: encode(content), Sender: bot}
	}
	self := string(bot)
	drafts := append([]room.Draft{
		{Type: "m.room.member", StateKey: &self, Content: memberContent("join", hk.DisplayName, hk.AvatarURL), Sender: bot},
		state("m.room.power_levels", "", levels),
		state("m.room.join_rules", "", map[string]string{"join_rule": "invite"}),
		state("m.room.history_visibility", "", map[string]string{"history_visibility": "shared"}),
		state("m.room.guest_access", "", map[string]string{"guest_access": "forbidden"}),
		state("m.room.name", "", map[string]string{"name": hk.DisplayName}),
	}, entrance...)
	roomID, err := h.d.Rooms.CreateRoom(ctx, v, bot, encode(create), drafts, room.RoomMeta{})
	if err != nil {
		return nil, fmt.Errorf("make the room of hook %s: %w", hk.ID, err)
	}
	won := false
	err = h.d.Store.Write(ctx, func(tx *store.Tx) error {
		var err error
		won, err = tx.SetHookRoom(hk.ID, roomID, gone)
		return err
	})
	if err != nil {
		return nil, err
	}
	made, err := h.d.Rooms.Room(ctx, roomID)
	if err != nil || won {
		return made, err
	}
	// Another process was quicker: its room counts, and this one goes.
	if _, _, err = h.d.Rooms.RemoveMembers(ctx, made); err == nil {
		err = h.d.Rooms.Purge(ctx, made.NID())
	}
	if err != nil {
		h.d.Logger.Warn("a room of a hook that was made twice stays", "room_id", roomID, "error", err)
	}
	now, _, err := h.read(ctx, hk.ID)
	if err != nil {
		return nil, err
	}
	return h.d.Rooms.Room(ctx, now.RoomID)
}

// read reads a hook.
func (h *Hooks) read(ctx context.Context, name string) (hk store.Hook, found bool, err error) {
	err = h.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		hk, found, err = tx.Hook(name)
		return err
	})
	return hk, found, err
}

// txn names a message of a hook, so that it is sent once on any process.
func txn(hk *store.Hook, kind, key string) string {
	return "hook/" + hex.EncodeToString(hash(fmt.Sprintf("%s\x00%d\x00%s\x00%s", hk.ID, hk.Created, kind, key))[:20])
}

// send sends a message through a hook.
func (h *Hooks) send(ctx context.Context, hk *store.Hook, m *message) (sent, error) {
	rm, bot, err := h.place(ctx, hk)
	if err != nil {
		return sent{}, err
	}
	mentions, err := h.mentioned(ctx, rm, m.Mentions)
	if err != nil {
		return sent{}, err
	}
	files, err := h.keep(ctx, bot, m)
	if err != nil {
		return sent{}, err
	}
	c, err := m.content(mentions)
	if err != nil {
		return sent{}, err
	}
	out := sent{RoomID: rm.ID()}
	w := writer{h: h, hk: hk, m: m, room: rm.ID(), bot: bot}
	if m.Title+m.Text+m.Markdown != "" {
		if out.EventID, err = w.text(ctx, c); err != nil {
			return sent{}, err
		}
	}
	for i, f := range files {
		if w.relation != nil {
			f["m.relates_to"] = w.relation
		}
		d := w.draft(f, "")
		if m.Idempotency != "" {
			d = w.draft(f, txn(hk, "file", fmt.Sprintf("%s/%d", m.Idempotency, i)))
		}
		eventID, err := h.d.Rooms.Send(ctx, rm.ID(), d)
		if err != nil {
			return sent{}, err
		}
		if out.EventID == "" {
			out.EventID = eventID
		} else {
			out.More = append(out.More, eventID)
		}
	}
	return out, nil
}

// writer sends one message.
type writer struct {
	h        *Hooks
	hk       *store.Hook
	m        *message
	room     id.RoomID
	bot      id.UserID
	relation map[string]any // to the thread that it belongs to
}

func (w *writer) draft(content map[string]any, txn string) room.Draft {
	d := room.Draft{Type: "m.room.message", Content: encode(content), Sender: w.bot}
	if txn != "" {
		d.Device, d.Txn = device, txn
	}
	return d
}

// text sends the message, as what its keys make of it: a change of an earlier message, an answer in a thread, or a new one.
func (w *writer) text(ctx context.Context, content map[string]any) (id.EventID, error) {
	once := ""
	if w.m.Idempotency != "" {
		once = txn(w.hk, "once", w.m.Idempotency)
	}
	if w.m.Thread != "" {
		root, done, err := w.anchor(ctx, store.HookKeyThread, w.m.Thread, content)
		if err != nil {
			return "", err
		}
		if done && w.m.Key == "" {
			return root, nil
		}
		if !done {
			w.relation = map[string]any{
				"rel_type": "m.thread", "event_id": root, "is_falling_back": true, "m.in_reply_to": map[string]any{"event_id": root},
			}
			content["m.relates_to"] = w.relation
		}
		if done { // the thread begins with it, so the key stands for it too
			return root, w.remember(ctx, store.HookKeyMessage, w.m.Key, root)
		}
	}
	if w.m.Key != "" {
		first, done, err := w.anchor(ctx, store.HookKeyMessage, w.m.Key, content)
		if err != nil || done {
			return first, err
		}
		delete(content, "m.relates_to")
		content = changed(content, first)
	}
	return w.h.d.Rooms.Send(ctx, w.room, w.draft(content, once))
}

// anchor finds the message that a key stands for. Where there is none, this one becomes it: done tells that it was sent, now or
// by an earlier attempt of the same post. The transaction id lets one message win on any number of processes, and tells a post that was
// interrupted before the key was noted what it had sent.
func (w *writer) anchor(ctx context.Context, kind int64, key string, content map[string]any) (first id.EventID, done bool, err error) {
	var known store.HookKey
	var found bool
	err = w.h.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		known, found, err = tx.HookKey(w.hk.ID, kind, key)
		return err
	})
	if err != nil {
		return "", false, err
	}
	if found && known.RoomID == w.room {
		return known.EventID, w.m.Idempotency != "" && known.First == w.m.Idempotency, nil
	}
	d := w.draft(content, txn(w.hk, fmt.Sprintf("first/%d", kind), key))
	first, err = w.h.d.Rooms.Send(ctx, w.room, d)
	if err != nil {
		return "", false, err
	}
	e, err := w.h.d.Rooms.EventByID(ctx, first)
	if err != nil {
		return "", false, err
	}
	done = e != nil && same(e.PDU.Content(), d.Content)
	if !done {
		return first, false, nil // another post was first; it notes the key
	}
	return first, true, w.remember(ctx, kind, key, first)
}

// same tells whether two messages say the same.
func same(a, b []byte) bool {
	for _, field := range []string{"msgtype", "body", "formatted_body"} {
		if gjson.GetBytes(a, field).String() != gjson.GetBytes(b, field).String() {
			return false
		}
	}
	return true
}

func (w *writer) remember(ctx context.Context, kind int64, key string, eventID id.EventID) error {
	return w.h.d.Store.Write(ctx, func(tx *store.Tx) error {
		return tx.SetHookKey(store.HookKey{Hook: w.hk.ID, Kind: kind, Key: key, RoomID: w.room, EventID: eventID, First: w.m.Idempotency, Created: w.h.now()})
	})
}

// changed is the content of an event that gives an earlier one new content. Spec: client-server API, "Event replacements".
func changed(content map[string]any, target id.EventID) map[string]any {
	out := map[string]any{
		"msgtype": content["msgtype"], "body": "* " + fmt.Sprint(content["body"]), "m.new_content": content, "m.mentions": map[string]any{},
		"m.relates_to": map[string]any{"rel_type": "m.replace", "event_id": target},
	}
	if rich, ok := content["formatted_body"].(string); ok {
		out["format"], out["formatted_body"] = content["format"], "* "+strings.TrimSpace(rich)
	}
	return out
}
