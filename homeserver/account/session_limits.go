package account

import (
	"context"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
)

// overdueChunk is how many devices are looked at in one round of the sweep.
const overdueChunk = 100

func sortSessions(s []SessionInfo) {
	slices.SortStableFunc(s, func(a, b SessionInfo) int {
		last := func(s SessionInfo) time.Time {
			if s.LastSeen.After(s.SignedIn) {
				return s.LastSeen
			}
			return s.SignedIn
		}
		return last(b).Compare(last(a))
	})
}

// Reasons why a session that nobody ended has ended.
const (
	endedIdle     = "idle"
	endedAbsolute = "absolute_limit"
)

// overLimit tells which limit a session that was begun and used at some times (ms) is over, "" for none.
func (c SessionConfig) overLimit(signedIn, seen, now int64) string {
	switch {
	case c.AbsoluteLimit > 0 && now >= signedIn+c.AbsoluteLimit.Milliseconds():
		return endedAbsolute
	case c.IdleLimit > 0 && now >= max(signedIn, seen)+c.IdleLimit.Milliseconds():
		return endedIdle
	}
	return ""
}

func (c SessionConfig) limited() bool { return c.AbsoluteLimit > 0 || c.IdleLimit > 0 }

// endOverdue ends a session softly that is over a limit: its device and keys stay.
func (a *Accounts) endOverdue(ctx context.Context, user id.UserID, device id.DeviceID, reason string) error {
	return a.EndSessions(ctx, user, Ending{Devices: []id.DeviceID{device}, Soft: true, Reason: reason})
}

// sweepOverdue ends sessions that are over a limit although nobody uses them, so that lists of sessions are true.
func (a *Accounts) sweepOverdue(ctx context.Context) error {
	c := a.Config.Sessions
	if !c.limited() {
		return nil
	}
	for {
		now := a.now()
		var signedInBefore, unusedSince int64
		if c.AbsoluteLimit > 0 {
			signedInBefore = now - c.AbsoluteLimit.Milliseconds()
		}
		if c.IdleLimit > 0 {
			unusedSince = now - c.IdleLimit.Milliseconds()
		}
		var devices []store.Device
		err := a.Store.Read(ctx, func(tx *store.Tx) error {
			var err error
			devices, err = tx.OverdueSessions(signedInBefore, unusedSince, overdueChunk)
			return err
		})
		if err != nil {
			return err
		}
		for _, d := range devices {
			reason := endedIdle
			err := a.Store.Write(ctx, func(tx *store.Tx) error {
				if _, found, err := tx.LockUser(d.User); err != nil || !found {
					return err
				}
				signedIn, seen, err := tx.DeviceTimes(d.User, d.ID)
				if err != nil {
					return err
				}
				if reason = c.overLimit(signedIn, seen, a.now()); reason == "" {
					return nil // it was used meanwhile
				}
				return a.endSessions(ctx, tx, d.User, Ending{Devices: []id.DeviceID{d.ID}, Soft: true, Reason: reason})
			})
			if err != nil {
				return err
			}
		}
		if len(devices) < overdueChunk {
			return nil
		}
	}
}
