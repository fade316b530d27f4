package homeserver

import (
	"context"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/clientsync"
	"github.com/moothall/moothall/homeserver/push"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// What follows are the funcs by which features meet that must not know each other.

// pushFeatures computes the compact features that are stored with an event.
func pushFeatures(evType string, stateKey *string, content []byte, parent func(eventID string) []byte) []byte {
	f := push.FeaturesOf(evType, stateKey, content, func(eventID string) string {
		p, err := push.ParseFeatures(parent(eventID))
		if err != nil {
			return ""
		}
		return p.Thread
	})
	return f.AppendBinary(nil)
}

// pushEvent is an event as push rules look at it; nil where nobody is to hear of it.
func (s *Server) pushEvent(ctx context.Context, _, nid int64) (*push.EventView, error) {
	evs, err := s.rooms.EventsByNID(ctx, []int64{nid})
	if err != nil || len(evs) == 0 || evs[0].Status != store.StatusAccepted || evs[0].RedactedBy != 0 {
		return nil, err
	}
	return pushView(evs[0]), nil
}

func pushView(e *room.Event) *push.EventView {
	p := e.PDU
	v := &push.EventView{ID: string(p.ID()), RoomID: string(p.RoomID()), Type: p.Type(), Sender: string(p.Sender()), Content: p.Content(), OriginServerTS: p.OriginServerTS(), Thread: threadOf(e.Features)}
	if k, ok := p.StateKey(); ok {
		v.StateKey = &k
	}
	return v
}

func (s *Server) pushRoomUsers(ctx context.Context, nid int64) ([]id.UserID, error) {
	r, err := s.rooms.RoomByNID(ctx, nid)
	if err != nil {
		return nil, err
	}
	var local []id.UserID
	for _, u := range r.Joined() {
		if u.Homeserver() == s.cfg.ServerName {
			local = append(local, u)
		}
	}
	return local, nil
}

// pushRoom is a room's state as notifications need it.
func (s *Server) pushRoom(ctx context.Context, nid int64) (push.RoomView, error) {
	r, err := s.rooms.RoomByNID(ctx, nid)
	if err != nil {
		return nil, err
	}
	return roomView{ctx, r}, nil
}

// roomView lives as long as one evaluation, which alone is why it holds a context.
type roomView struct {
	ctx context.Context
	r   *room.Room
}

func (v roomView) RoomID() id.RoomID                  { return v.r.ID() }
func (v roomView) MemberCount() int64                 { return int64(v.r.JoinedCount()) }
func (v roomView) Name() string                       { return v.r.Name() }
func (v roomView) Alias() string                      { return v.r.CanonicalAlias() }
func (v roomView) PowerLevel(u id.UserID) int64       { return v.r.PowerLevels().User(u) }
func (v roomView) NotificationLevel(key string) int64 { return v.r.PowerLevels().Notification(key) }

func (v roomView) DisplayName(u id.UserID) string {
	e, err := v.r.MemberEvent(v.ctx, u)
	if err != nil || e == nil {
		return "" // without a name, rules on it do not match
	}
	return gjson.GetBytes(e.PDU.Content(), "displayname").Str
}

// pushUnread counts what a user's badges show.
func (s *Server) pushUnread(ctx context.Context, user id.UserID) (push.Counts, error) {
	c, err := s.sync.UnreadTotal(ctx, user)
	return push.Counts{Unread: c.Notifications}, err
}

// receiptUsers lists users of this server with new receipts in a room.
func (s *Server) receiptUsers(ctx context.Context, room, pos int64) ([]id.UserID, error) {
	return s.sync.ReceiptUsers(ctx, room, pos)
}

func (s *Server) ignores(ctx context.Context, user, sender id.UserID) (bool, error) {
	ignored, err := s.data.Ignored(ctx, user)
	_, yes := ignored[sender]
	return yes, err
}

// pushRules is the content of a user's m.push_rules.
func (s *Server) pushRules(ctx context.Context, user id.UserID) ([]byte, error) {
	content, _, err := s.push.AccountData(ctx, user)
	return content, err
}

// threadOf reads the thread out of stored push features.
func threadOf(features []byte) string {
	f, err := push.ParseFeatures(features)
	if err != nil {
		return ""
	}
	return f.Thread
}

// syncRules is what a user's push rules say of the events of one room.
func (s *Server) syncRules(ctx context.Context, user id.UserID, r *room.Room) (clientsync.Rules, error) {
	rules, err := s.push.Rules(ctx, user)
	if err != nil {
		return clientsync.Rules{}, err
	}
	view := roomView{ctx, r}
	levels := r.PowerLevels()
	rc := push.RoomContext{
		UserID: string(user), RoomID: string(r.ID()), DisplayName: view.DisplayName(user), MemberCount: view.MemberCount(),
		RoomNotifyLevel: levels.NotificationRoom(), NotifyLevel: levels.Notification,
	}
	return clientsync.Rules{
		Skips: func(features []byte) bool {
			return rules.Compiled.Skips(push.FlagsOf(features))
		},
		Quick: func(features []byte, sender id.UserID) (clientsync.Verdict, bool) {
			f, err := push.ParseFeatures(features)
			if err != nil {
				return clientsync.Verdict{}, false
			}
			c := rc
			c.SenderLevel = levels.User(sender)
			if rules.Compiled.NeedsThread() {
				if c.Thread, err = s.push.ThreadState(ctx, r.NID(), f.Thread, user); err != nil {
					return clientsync.Verdict{}, false // Full tells of it
				}
			}
			a, decided := rules.Compiled.EvaluateFeatures(&push.FeatureView{Features: f, Sender: string(sender)}, &c)
			return verdict(a), decided
		},
		Full: func(e *room.Event) (clientsync.Verdict, error) {
			c, v := rc, pushView(e)
			c.SenderLevel = levels.User(e.PDU.Sender())
			if rules.Compiled.NeedsThread() {
				var err error
				if c.Thread, err = s.push.ThreadState(ctx, r.NID(), v.Thread, user); err != nil {
					return clientsync.Verdict{}, err
				}
			}
			return verdict(rules.Compiled.Evaluate(v, &c)), nil
		},
	}, nil
}

func verdict(a push.Actions) clientsync.Verdict {
	v := clientsync.Verdict{Notify: a.Notify, Highlight: a.Highlight}
	if a.RuleID() != "" {
		v.Actions = a.JSON
	}
	return v
}

// bundle gives the aggregations of events for one viewer.
func (s *Server) bundle(ctx context.Context, user id.UserID, r *room.Room, events []*room.Event) (func(e *room.Event) []byte, error) {
	ignored, err := s.data.Ignored(ctx, user)
	if err != nil {
		return nil, err
	}
	return s.rooms.Bundles(ctx, r, user, ignored, events)
}

// sessionEnded asks again who makes a request that has waited for long.
func (s *Server) sessionEnded(ctx context.Context, who *web.Identity) error {
	return s.accounts.SessionEnded(ctx, who)
}
