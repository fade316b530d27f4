// Package roomclass decides which rooms may be encrypted end to end: an archive of ciphertext serves nobody. Every room has a
// class, given by the configuration's rules when it is made and kept from then on, and a class allows encryption or forbids it.
package roomclass

import (
	"context"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

// Class is a room's class.
type Class string

// The classes. A room that no rule speaks of is corporate.
const (
	Corporate    Class = "corporate"
	Confidential Class = "confidential"
	Private      Class = "private"
	External     Class = "external"
)

// All lists the classes.
func All() []Class { return []Class{Corporate, Confidential, Private, External} }

// Rule puts rooms into a class: those for which everything holds that it says.
type Rule struct {
	Class       Class
	CreatorRole account.Role   // the creator has this role; "": whoever
	Preset      string         // private_chat, public_chat or trusted_private_chat; "": any
	Name, Alias *regexp.Regexp // of the room's name and of its whole alias; nil: any, also none
}

// Config is the policy.
type Config struct {
	Forbidden []Class // classes whose rooms must not be encrypted
	Rules     []Rule  // the first one that matches decides
}

// Deps is what Classes works with.
type Deps struct {
	Store    *store.Store
	Accounts *account.Accounts
	Logger   *slog.Logger
	Config   Config
}

// Classes knows the classes of rooms.
type Classes struct {
	Deps
	known sync.Map // id.RoomID to Class; a room's class never changes
}

// New makes Classes.
func New(d Deps) *Classes { return &Classes{Deps: d} }

// Idle tells whether the policy says nothing, so that nobody needs to ask.
func (c *Classes) Idle() bool { return len(c.Config.Forbidden) == 0 && len(c.Config.Rules) == 0 }

// Forbids tells whether rooms of a class must not be encrypted.
func (c *Classes) Forbids(class Class) bool { return slices.Contains(c.Config.Forbidden, class) }

// facts are what rules look at.
type facts struct {
	creator             id.UserID
	preset, name, alias string
}

func (c *Classes) decide(ctx context.Context, f facts) (Class, error) {
	var roles []account.Role
	for _, r := range c.Config.Rules {
		if r.CreatorRole != "" && roles == nil && f.creator != "" {
			var err error
			if roles, err = c.Accounts.Roles(ctx, f.creator); err != nil && mxerr.As(err) == nil {
				return "", err
			}
		}
		switch {
		case r.CreatorRole != "" && !slices.Contains(roles, r.CreatorRole), r.Preset != "" && r.Preset != f.preset,
			r.Name != nil && !r.Name.MatchString(f.name), r.Alias != nil && !r.Alias.MatchString(f.alias):
			continue
		}
		return r.Class, nil
	}
	return Corporate, nil
}

// encrypts tells whether an event makes a room encrypted, or is encrypted itself.
func encrypts(evType string) bool {
	return evType == "m.room.encryption" || evType == "m.room.encrypted"
}

// NewRoom gives a room that is about to be made its class, and takes out of its events those that would encrypt it where
// its class forbids that. made notes the class when the room is there. A room that replaces another one has that one's class.
func (c *Classes) NewRoom(ctx context.Context, creator id.UserID, drafts []room.Draft, meta room.RoomMeta) (kept []room.Draft, made func(context.Context, id.RoomID), err error) {
	if c.Idle() {
		return drafts, nil, nil
	}
	class := Class("")
	f := facts{creator: creator, preset: meta.Preset}
	for i := range drafts {
		d := &drafts[i]
		switch d.Type {
		case "m.room.create":
			if before := gjson.GetBytes(d.Content, "predecessor.room_id").Str; before != "" {
				if class, err = c.stored(ctx, id.RoomID(before)); err != nil {
					return nil, nil, err
				}
			}
		case "m.room.name":
			f.name = gjson.GetBytes(d.Content, "name").Str
		case "m.room.canonical_alias":
			f.alias = gjson.GetBytes(d.Content, "alias").Str
		case "m.room.join_rules":
			if f.preset == "" {
				f.preset = presetOf(gjson.GetBytes(d.Content, "join_rule").Str)
			}
		}
	}
	if class == "" {
		if class, err = c.decide(ctx, f); err != nil {
			return nil, nil, err
		}
	}
	kept = drafts
	if c.Forbids(class) {
		kept = slices.DeleteFunc(slices.Clone(drafts), func(d room.Draft) bool { return encrypts(d.Type) })
	}
	return kept, func(ctx context.Context, roomID id.RoomID) {
		if _, err := c.put(ctx, roomID, class); err != nil { // it is decided again when it is asked for
			c.Logger.Warn("the class of a new room is not stored", "room_id", roomID, "error", err)
		}
	}, nil
}

func presetOf(joinRule string) string {
	if joinRule == "public" {
		return "public_chat"
	}
	return "private_chat"
}

func (c *Classes) stored(ctx context.Context, roomID id.RoomID) (Class, error) {
	if k, ok := c.known.Load(roomID); ok {
		return k.(Class), nil
	}
	var class string
	err := c.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		class, err = tx.RoomClass(roomID)
		return err
	})
	if err == nil && class != "" {
		c.known.Store(roomID, Class(class))
	}
	return Class(class), err
}

func (c *Classes) put(ctx context.Context, roomID id.RoomID, class Class) (Class, error) {
	is := ""
	err := c.Store.Write(ctx, func(tx *store.Tx) (err error) {
		is, err = tx.SetRoomClass(roomID, string(class), time.Now().UnixMilli())
		return err
	})
	if err == nil {
		c.known.Store(roomID, Class(is))
	}
	return Class(is), err
}

// Of is the class of a room. One that was made before there were classes gets its class now.
func (c *Classes) Of(ctx context.Context, r *room.Room) (Class, error) {
	class, err := c.stored(ctx, r.ID())
	if err != nil || class != "" {
		return class, err
	}
	class, err = c.decide(ctx, facts{creator: r.Creator(), preset: presetOf(r.JoinRule()), name: r.Name(), alias: r.CanonicalAlias()})
	if err != nil {
		return "", err
	}
	return c.put(ctx, r.ID(), class)
}

var errForbidden = mxerr.New(http.StatusForbidden, "M_FORBIDDEN",
	"rooms of this kind are archived by the organisation and must not be encrypted end to end; ask your administrator which rooms may be")

// Check refuses events that would encrypt a room whose class forbids it, and encrypted events in it.
func (c *Classes) Check(ctx context.Context, r *room.Room, d *room.Draft) error {
	if !encrypts(d.Type) || len(c.Config.Forbidden) == 0 {
		return nil
	}
	class, err := c.Of(ctx, r)
	if err != nil || !c.Forbids(class) {
		return err
	}
	return errForbidden
}

// WellKnown is what clients are told of encryption in /.well-known/matrix/client (io.element.e2ee); nil where there is nothing to
// say.
func (c *Classes) WellKnown() map[string]any {
	switch len(c.Config.Forbidden) {
	case 0:
		return nil
	case len(All()):
		return map[string]any{"default": false, "force_disable": true, "secure_backup_required": false}
	}
	// Some rooms may be encrypted: clients leave it off, and the server has the last word.
	return map[string]any{"default": !c.Forbids(Corporate), "secure_backup_required": false}
}
