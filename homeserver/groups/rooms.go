package groups

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

// targetField of m.room.create says which target a room is for: so it is found again if the server stops between making
// the room and noting that it did.
const targetField = "org.moothall.group"

type object = map[string]any

type memberContent struct {
	Membership    string    `json:"membership"`
	DisplayName   *string   `json:"displayname,omitzero"`
	AvatarURL     *string   `json:"avatar_url,omitzero"`
	Reason        string    `json:"reason,omitzero"`
	AuthorisedVia id.UserID `json:"join_authorised_via_users_server,omitzero"`
}

func content(v any) []byte {
	b, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		return []byte(`{}`) // maps and structs of text and numbers always marshal
	}
	return b
}

func state(sender id.UserID, evType, stateKey string, v any) room.Draft {
	return room.Draft{Type: evType, StateKey: &stateKey, Content: content(v), Sender: sender}
}

func member(sender, user id.UserID, p store.Profile, c memberContent) room.Draft {
	c.DisplayName, c.AvatarURL = p.DisplayName, p.AvatarURL
	return state(sender, "m.room.member", string(user), c)
}

func (g *Groups) alias(localpart string) id.RoomAlias {
	return id.RoomAlias("#" + localpart + ":" + g.d.ServerName)
}

// create makes the room of a target, or finds the one that an interrupted run made.
func (g *Groups) create(ctx context.Context, p *RoomPlan) error {
	service, err := g.Service(ctx)
	if err != nil {
		return err
	}
	var found id.RoomID
	if p.row.NID != 0 { // it was begun before, and the end is not noted
		if found, err = g.orphan(ctx, service, p.t.key); err != nil {
			return err
		}
	} else if err := g.begin(ctx, p); err != nil {
		return err
	}
	p.row.Alias = p.t.alias
	if found == "" {
		found, err = g.makeRoom(ctx, service, p.t, p.t.alias)
		if mxerr.Is(err, "M_ROOM_IN_USE") {
			g.d.Logger.Warn("the alias of a group's room is taken: the room has none", "alias", g.alias(p.t.alias), "group", p.t.key)
			p.row.Alias = ""
			found, err = g.makeRoom(ctx, service, p.t, "")
		}
	}
	if err != nil {
		return err
	}
	p.RoomID, p.row.RoomID, p.row.Name = found, found, p.t.name
	return g.d.Store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.SaveGroupRoom(p.row); err != nil {
			return err
		}
		return audit.Append(ctx, tx, audit.Entry{Action: "group.room.created", Target: string(p.RoomID), Details: g.details(p.t)})
	})
}

// begin notes that a room is about to be made. Numbers are given one after the other: no other process does so now.
func (g *Groups) begin(ctx context.Context, p *RoomPlan) error {
	g.numbers.Lock()
	defer g.numbers.Unlock()
	return g.d.Store.Write(ctx, func(tx *store.Tx) error {
		row, err := tx.BeginGroupRoom(store.GroupRoom{Target: p.t.key, Source: p.t.source, ID: p.t.id})
		p.row = row
		return err
	})
}

func (g *Groups) details(t *target) map[string]any {
	d := map[string]any{"name": t.name, "rule": t.rule.ID}
	if t.source != "" {
		d["source"], d["group"] = t.source, t.id
	}
	return d
}

// orphan finds a room that the service account made for a target and that nothing is noted of.
func (g *Groups) orphan(ctx context.Context, service id.UserID, key string) (id.RoomID, error) {
	u, err := g.d.Rooms.User(ctx, service)
	if err != nil {
		return "", err
	}
	known := map[id.RoomID]bool{}
	err = g.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		rows, err := tx.GroupRooms()
		for _, r := range rows {
			known[r.RoomID] = true
		}
		return err
	})
	if err != nil {
		return "", err
	}
	for _, ur := range u.Rooms() {
		if ur.Membership != room.MembershipJoin || known[ur.Room.ID()] {
			continue
		}
		rm, err := g.d.Rooms.Room(ctx, ur.Room.ID())
		if err != nil {
			return "", err
		}
		e, err := rm.StateEvent(ctx, "m.room.create", "")
		if err != nil {
			return "", err
		}
		if e != nil && e.PDU.Sender() == service && gjson.GetBytes(e.PDU.Content(), gjson.Escape(targetField)).Str == key {
			return rm.ID(), nil
		}
	}
	return "", nil
}

// makeRoom makes a room or space that the service account owns. The others' levels are below its own, so that nobody
// who leaves the company is the last one who could manage it.
func (g *Groups) makeRoom(ctx context.Context, service id.UserID, t *target, alias string) (id.RoomID, error) {
	v, _ := event.LookupVersion(event.DefaultVersion)
	create := object{"room_version": v.ID, targetField: t.key}
	if t.space {
		create["type"] = "m.space"
	}
	var others []id.UserID
	for _, u := range g.d.Config.AdditionalCreators {
		if u != service {
			others = append(others, u)
		}
	}
	if v.PrivilegedCreators && len(others) > 0 {
		create["additional_creators"] = others
	}
	if !v.ImplicitCreator {
		create["creator"] = service
	}
	profiles, err := g.profiles(ctx, []id.UserID{service})
	if err != nil {
		return "", err
	}
	drafts := []room.Draft{
		member(service, service, profiles[service], memberContent{Membership: "join"}),
		state(service, "m.room.power_levels", "", g.firstLevels(v, service, others, t)),
	}
	var meta room.RoomMeta
	if alias != "" {
		meta.Aliases = []id.RoomAlias{g.alias(alias)}
		drafts = append(drafts, state(service, "m.room.canonical_alias", "", object{"alias": g.alias(alias)}))
	}
	// A restricted room that allows nobody by itself opens to whom the service account vouches for: one event for each
	// member in place of an invitation and a join. Spec: room version 8, "Restricted rooms".
	rules := object{"join_rule": "restricted", "allow": []string{}}
	if t.rule.Join == JoinInvite {
		rules = object{"join_rule": "invite"}
	}
	drafts = append(drafts,
		state(service, "m.room.join_rules", "", rules),
		state(service, "m.room.history_visibility", "", object{"history_visibility": t.rule.History}),
		state(service, "m.room.guest_access", "", object{"guest_access": "forbidden"}),
	)
	if t.rule.Encrypted && !t.space {
		drafts = append(drafts, state(service, "m.room.encryption", "", object{"algorithm": "m.megolm.v1.aes-sha2"}))
	}
	drafts = append(drafts, state(service, "m.room.name", "", object{"name": t.name}))
	if t.topic != "" {
		drafts = append(drafts, state(service, "m.room.topic", "", object{"topic": t.topic}))
	}
	return g.d.Rooms.CreateRoom(ctx, v, service, content(create), drafts, meta)
}

func (g *Groups) firstLevels(v *event.Version, service id.UserID, others []id.UserID, t *target) object {
	users := map[id.UserID]int64{}
	if !v.PrivilegedCreators {
		users[service] = 100
		for _, u := range others {
			users[u] = 100
		}
	}
	messages := 0
	if t.space {
		messages = 100 // nobody talks in a space
	}
	return object{
		"users": users, "users_default": 0, "events_default": messages, "state_default": 50,
		"ban": 50, "kick": 50, "redact": 50, "invite": 50, "historical": 100,
		"events": map[string]int64{
			"m.room.avatar": 50, "m.room.canonical_alias": 100, "m.room.encryption": 100, "m.room.history_visibility": 100, "m.room.name": 50,
			"m.room.power_levels": 100, "m.room.server_acl": 100, "m.room.tombstone": 150, "m.room.join_rules": 100, "m.space.child": 50,
		},
	}
}

// rename gives a room the name that its group has now, and an alias by that name; the old alias goes on leading there.
func (g *Groups) rename(ctx context.Context, p *RoomPlan) error {
	service, err := g.Service(ctx)
	if err != nil {
		return err
	}
	drafts := []room.Draft{state(service, "m.room.name", "", object{"name": p.t.name})}
	rm, err := g.d.Rooms.Room(ctx, p.RoomID)
	if err != nil {
		return err
	}
	row := p.row
	row.Name = p.t.name
	if p.t.alias != "" && p.t.alias != row.Alias {
		claimed := false
		err := g.d.Store.Write(ctx, func(tx *store.Tx) error {
			var err error
			claimed, err = tx.InsertAlias(store.Alias{
				Alias: string(g.alias(p.t.alias)), Room: rm.NID(), Creator: string(service), Created: time.Now().UnixMilli(),
			})
			if err != nil || !claimed {
				return err
			}
			_, err = tx.Announce(store.Entry{Kind: store.KindRoomMeta, Room: rm.NID(), Key: "aliases"})
			return err
		})
		if err != nil {
			return err
		}
		if claimed {
			aliases := object{"alias": g.alias(p.t.alias)}
			if row.Alias != "" {
				aliases["alt_aliases"] = []id.RoomAlias{g.alias(row.Alias)}
			}
			drafts = append(drafts, state(service, "m.room.canonical_alias", "", aliases))
			row.Alias = p.t.alias
		}
	}
	if _, err := g.d.Rooms.SendAll(ctx, p.RoomID, drafts); err != nil {
		return err
	}
	p.row = row
	return g.d.Store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.SaveGroupRoom(row); err != nil {
			return err
		}
		return audit.Append(ctx, tx, audit.Entry{
			Action: "group.room.renamed", Target: string(p.RoomID), Before: object{"name": p.OldName}, After: object{"name": p.t.name}, Details: g.details(p.t),
		})
	})
}

// move puts a room into the space where it belongs now, and out of the one that it was in.
// Spec: client-server API, "Spaces".
func (g *Groups) move(ctx context.Context, p *RoomPlan, parent id.RoomID) error {
	service, err := g.Service(ctx)
	if err != nil {
		return err
	}
	via := []string{g.d.ServerName}
	if old := p.row.Parent; old != "" && old != parent {
		_, err := g.d.Rooms.Send(ctx, old, state(service, "m.space.child", string(p.RoomID), object{}))
		if err == nil {
			_, err = g.d.Rooms.Send(ctx, p.RoomID, state(service, "m.space.parent", string(old), object{}))
		}
		if err != nil && !refused(err) { // the old space may have been deleted
			return err
		}
	}
	if parent != "" {
		if _, err := g.d.Rooms.Send(ctx, parent, state(service, "m.space.child", string(p.RoomID), object{"via": via, "suggested": true})); err != nil {
			return err
		}
		if _, err := g.d.Rooms.Send(ctx, p.RoomID, state(service, "m.space.parent", string(parent), object{"via": via, "canonical": true})); err != nil {
			return err
		}
	}
	row := p.row
	row.Parent = parent
	p.row = row
	return g.d.Store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.SaveGroupRoom(row); err != nil {
			return err
		}
		return audit.Append(ctx, tx, audit.Entry{
			Action: "group.room.moved", Target: string(p.RoomID), After: object{"space": parent}, Details: g.details(p.t),
		})
	})
}

// refused tells whether an error is an answer, and not a failure to answer.
func refused(err error) bool {
	e := mxerr.As(err)
	return e != nil && e.Status < http.StatusInternalServerError && e.Status != http.StatusTooManyRequests
}

// setLevels brings the power levels of users to what their groups give. Those of others are left as they are.
func (g *Groups) setLevels(ctx context.Context, p *RoomPlan) error {
	service, err := g.Service(ctx)
	if err != nil {
		return err
	}
	rm, err := g.d.Rooms.Room(ctx, p.RoomID)
	if err != nil {
		return err
	}
	e, err := rm.StateEvent(ctx, "m.room.power_levels", "")
	if err != nil || e == nil {
		return errors.Join(err, noLevels(e == nil))
	}
	var all map[string]jsontext.Value
	if err := json.Unmarshal(e.PDU.Content(), &all); err != nil {
		return err
	}
	users := map[id.UserID]jsontext.Value{}
	if raw := all["users"]; raw != nil {
		if err := json.Unmarshal(raw, &users); err != nil {
			return err
		}
	}
	creators := g.creators(ctx, rm)
	before := len(users)
	changed := false
	for _, u := range slices.Sorted(maps.Keys(p.Levels)) {
		if slices.Contains(creators, u) {
			continue
		}
		level := p.Levels[u]
		want := jsontext.Value(content(level))
		if level == 0 {
			delete(users, u)
		} else if string(users[u]) != string(want) {
			users[u] = want
			changed = true
		}
	}
	if changed || len(users) != before {
		all["users"] = content(users)
		if _, err := g.d.Rooms.Send(ctx, p.RoomID, state(service, "m.room.power_levels", "", all)); err != nil {
			return err
		}
	}
	var places []store.Placement
	for u, level := range p.Levels {
		if _, wanted := p.t.members[u]; wanted {
			places = append(places, store.Placement{Room: p.row.NID, User: u, Level: level})
		}
	}
	return g.d.Store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.PlaceInGroupRooms(places); err != nil {
			return err
		}
		for _, u := range slices.Sorted(maps.Keys(p.Levels)) {
			details := g.details(p.t)
			details["room_id"], details["level"] = p.RoomID, p.Levels[u]
			if err := audit.Append(ctx, tx, audit.Entry{Action: "group.member.level", Target: string(u), Details: details}); err != nil {
				return err
			}
		}
		return nil
	})
}

func noLevels(missing bool) error {
	if missing {
		return errors.New("the room has no power levels")
	}
	return nil
}

// creators are who stands above all power levels: an event of levels may not list them. Spec: room version 12.
func (g *Groups) creators(ctx context.Context, rm *room.Room) []id.UserID {
	if !rm.Version().PrivilegedCreators {
		return nil
	}
	e, err := rm.StateEvent(ctx, "m.room.create", "")
	if err != nil || e == nil {
		return nil
	}
	return e.PDU.Creators()
}
