package groups

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/store"
)

const (
	rulesSetting = "groups.rules"
	gather       = 200 * time.Millisecond
)

// Run brings rooms up to date in the background: after Put and Edit, after an interruption, when the rules have changed,
// and when somebody who was skipped can be put into rooms (an account was made or unlocked).
func (g *Groups) Run(ctx context.Context) error {
	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() error { return g.d.Store.RunFollower(ctx, "groups", g.follow) })
	work.Go(func() error {
		tick := time.NewTicker(runEvery)
		defer tick.Stop()
		fresh := true
		for {
			if err := g.catchUp(ctx, fresh); err != nil && ctx.Err() == nil {
				g.d.Logger.Warn("the rooms of groups are not up to date", "error", err)
			} else {
				fresh = false
			}
			select {
			case <-ctx.Done():
				return nil
			case <-g.kick:
				// whoever changes one group often changes others at once: one look for all of them
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(gather):
				}
			case <-tick.C:
			}
		}
	})
	return work.Wait()
}

// catchUp settles what is open; fresh: the server has just started, so the rules may be others.
func (g *Groups) catchUp(ctx context.Context, fresh bool) error {
	if fresh {
		if err := g.newRules(ctx); err != nil {
			return err
		}
	}
	_, err := g.Settle(ctx)
	return err
}

// newRules settles everything if the configuration is another than last time.
func (g *Groups) newRules(ctx context.Context) error {
	raw, err := json.Marshal(g.d.Config, json.Deterministic(true))
	if err != nil {
		return err
	}
	sum := sha256.Sum256(raw)
	now := hex.EncodeToString(sum[:])
	var before []byte
	var any bool
	err = g.d.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		if before, _, err = tx.Setting(rulesSetting); err != nil {
			return err
		}
		groups, err := tx.CompanyGroups()
		any = len(groups) > 0
		return err
	})
	if err != nil || string(before) == now {
		return err
	}
	if any {
		if _, err := g.SettleAll(ctx); err != nil {
			return err
		}
	}
	return g.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.PutSetting(rulesSetting, []byte(now)) })
}

// follow looks for accounts that changed: the rooms of their groups are looked at again.
func (g *Groups) follow(ctx context.Context, entries []store.Entry) error {
	if !g.Active() {
		return nil
	}
	seen := map[id.UserID]bool{}
	var users []id.UserID
	for _, e := range entries {
		if u := id.UserID(e.User); e.Kind == store.KindUser && !seen[u] {
			seen[u] = true
			users = append(users, u)
		}
	}
	if len(users) == 0 {
		return nil
	}
	return g.Recheck(store.Riding(audit.WithSource(ctx, audit.Source{Kind: audit.KindSystem})), users...)
}

// Recheck marks the groups of users as changed: their rooms are looked at again.
func (g *Groups) Recheck(ctx context.Context, users ...id.UserID) error {
	touched := false
	err := g.d.Store.Write(ctx, func(tx *store.Tx) error {
		groups, err := tx.CompanyGroupsOf(users)
		if err != nil {
			return err
		}
		touched = len(groups) > 0
		for _, x := range groups {
			if err := tx.TouchCompanyGroup(x.Source, x.ID); err != nil {
				return err
			}
		}
		return nil
	})
	if touched {
		g.wake()
	}
	return err
}
