package bench

import (
	"context"
	"time"
)

// atOnce is how many people sign in at the same moment, as when an office opens.
const atOnce = 200

// phaseSignIns lets 200 people sign in with their passwords at once, again and again.
func (b *Bench) phaseSignIns(ctx context.Context) error {
	users, err := b.need(ctx, atOnce)
	if err != nil {
		return err
	}
	signIns := &recorder{}
	extra := map[string]float64{"at once": atOnce}
	return b.neighbours(ctx, "200 sign-ins at once", extra, nil, func(ctx context.Context) error {
		for end := time.Now().Add(b.Duration); time.Now().Before(end) && ctx.Err() == nil; {
			err := parallel(ctx, atOnce, atOnce, func(ctx context.Context, i int) error {
				start := time.Now()
				_, err := users[i].call(ctx, "POST", "/_matrix/client/v3/login", object("type", "m.login.password",
					"identifier", map[string]string{"type": "m.id.user", "user": users[i].id}, "password", b.password))
				signIns.add(time.Since(start), err)
				return nil
			})
			if err != nil {
				return err
			}
		}
		extra["sign-ins"], extra["refused"] = float64(len(signIns.took)), float64(signIns.errs)
		extra["sign-in p50 ms"], extra["sign-in p99 ms"] = signIns.percentile(0.50), signIns.percentile(0.99)
		return nil
	})
}
