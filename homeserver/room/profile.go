package room

import (
	"context"
	"net/http"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
)

// fanOut is how many rooms of a user change at once; the committer groups them.
const fanOut = 32

// eachRoom runs fn for the user's rooms of some memberships. A room that refuses is left as it is and logged.
func (rs *Rooms) eachRoom(ctx context.Context, userID id.UserID, what string, fn func(ctx context.Context, r *Room) error, memberships ...Membership) error {
	u, err := rs.User(ctx, userID)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(fanOut)
	for _, ur := range u.Rooms() {
		wanted := false
		for _, m := range memberships {
			wanted = wanted || ur.Membership == m
		}
		if !wanted {
			continue
		}
		g.Go(func() error {
			err := fn(ctx, ur.Room)
			if e := mxerr.As(err); e != nil && e.Status < http.StatusInternalServerError {
				rs.d.Logger.Warn(what, "user_id", userID, "room_id", ur.Room.id, "error", err)
				return nil
			}
			return err
		})
	}
	return g.Wait()
}

// SetProfile writes a user's new display name and avatar into the member events of all joined rooms; an empty value
// removes the field. Spec: client-server API, "Events on Change of Profile Information".
func (rs *Rooms) SetProfile(ctx context.Context, userID id.UserID, displayName, avatarURL string) error {
	return rs.eachRoom(ctx, userID, "a room does not take the new profile", func(ctx context.Context, r *Room) error {
		old, err := r.MemberEvent(ctx, userID)
		if err != nil || old == nil {
			return err
		}
		content, changed, err := withProfile(old.PDU.Content(), displayName, avatarURL)
		if err != nil || !changed {
			return err
		}
		key := string(userID)
		_, err = rs.Send(ctx, r.id, Draft{Type: "m.room.member", StateKey: &key, Content: content, Sender: userID})
		return err
	}, MembershipJoin)
}

// withProfile changes the profile in the content of a member event, and tells whether that is a change.
func withProfile(content []byte, displayName, avatarURL string) ([]byte, bool, error) {
	var m map[string]jsontext.Value
	if err := json.Unmarshal(content, &m); err != nil {
		return nil, false, err
	}
	changed := false
	for field, value := range map[string]string{"displayname": displayName, "avatar_url": avatarURL} {
		want := jsontext.Value(nil)
		if value != "" {
			want = event.AppendCanonicalString(nil, value)
		}
		if string(m[field]) == string(want) {
			continue
		}
		changed = true
		if want == nil {
			delete(m, field)
		} else {
			m[field] = want
		}
	}
	// how the user came in (reason, join_authorised_via_users_server) is not repeated: the user is in
	delete(m, "reason")
	delete(m, "join_authorised_via_users_server")
	delete(m, "third_party_invite")
	out, err := json.Marshal(m)
	return out, changed, err
}

// LeaveAll makes a user leave all rooms, and refuse all invitations and withdraw all knocks.
func (rs *Rooms) LeaveAll(ctx context.Context, userID id.UserID) error {
	return rs.eachRoom(ctx, userID, "a room does not let the user go", func(ctx context.Context, r *Room) error {
		_, err := rs.Send(ctx, r.id, leaveDraft(userID))
		return err
	}, MembershipJoin, MembershipInvite, MembershipKnock)
}
