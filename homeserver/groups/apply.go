package groups

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

// Report is what was done.
type Report struct {
	Counts
	Errors []string        `json:"errors,omitempty"` // one for each room that could not be brought up to date
	failed map[string]bool // targets
}

// Progress is told how far an Apply is; nil: nobody asks.
type Progress func(Report)

const leaseName = "groups"

// pace is how much is done at once.
type pace struct {
	unit   int // memberships of one room that are one unit of work
	atOnce int // units under way: what waits is committed together
	stores int // groups written at a time
}

// usualPace keeps transactions so small that the messages of others hardly wait for them. Those that ride wait for others
// anyway: more of them at once hold up nobody longer.
var (
	usualPace  = pace{unit: 4, atOnce: 2, stores: 1}
	ridingPace = pace{unit: 4, atOnce: 8, stores: 8}
)

// Apply does what a plan says: it stores the groups, then brings all rooms up to date. It goes by what is true at the
// time, so that a plan may be old and an interrupted one is simply applied again. What fails in one room is reported
// and does not keep the others from being done.
func (g *Groups) Apply(ctx context.Context, p Plan, progress Progress) (Report, error) {
	var out Report
	err := g.alone(ctx, func(ctx context.Context) error {
		// who is new in a group comes before who is out: somebody who moves is in a common room all along
		for _, phase := range []phase{additions, removals} {
			work, ctx := errgroup.WithContext(ctx)
			work.SetLimit(g.pace.stores)
			for i := range p.write {
				x := p.write[i]
				x.Source = p.Source
				work.Go(func() error { return g.storePhase(ctx, &x, phase) })
			}
			if err := work.Wait(); err != nil {
				return err
			}
		}
		out.Groups = len(p.write)
		return g.settle(ctx, true, &out, progress)
	})
	return out, err
}

// Settle brings the rooms of all groups up to date that changed since it was done last.
func (g *Groups) Settle(ctx context.Context) (Report, error) {
	var out Report
	var open bool
	err := g.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		var err error
		open, err = tx.DirtyCompanyGroups()
		return err
	})
	if err != nil || !open {
		return out, err
	}
	err = g.alone(ctx, func(ctx context.Context) error { return g.settle(ctx, false, &out, nil) })
	return out, err
}

// SettleAll brings all rooms up to date, also where no group changed.
func (g *Groups) SettleAll(ctx context.Context) (Report, error) {
	var out Report
	err := g.alone(ctx, func(ctx context.Context) error { return g.settle(ctx, true, &out, nil) })
	return out, err
}

// alone runs fn while nobody else changes rooms of groups, in this process or another. What fn writes rides.
func (g *Groups) alone(ctx context.Context, fn func(ctx context.Context) error) error {
	ride := func(ctx context.Context) error { return fn(store.Riding(ctx)) }
	select {
	case g.work <- struct{}{}:
		defer func() { <-g.work }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		held, err := g.d.Store.TryLeased(ctx, leaseName, ride)
		if held || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// settle compares and acts. all: every room; else those of groups that changed.
func (g *Groups) settle(ctx context.Context, all bool, out *Report, progress Progress) error {
	if audit.SourceOf(ctx).Kind == audit.KindSystem {
		ctx = audit.WithSource(ctx, audit.Source{Kind: audit.KindSystem, Actor: g.d.Accounts.UserID(g.d.Config.ServiceAccount)})
	}
	gr, err := g.load(ctx)
	if err != nil {
		return err
	}
	var dirty []ref
	for _, r := range gr.sorted() {
		if gr.rows[r].Dirty > 0 {
			dirty = append(dirty, r)
		}
	}
	if !all && len(dirty) == 0 {
		return nil
	}
	targets := g.targets(gr)
	if !all {
		affected := gr.affected(dirty)
		for _, t := range targets {
			t.idle = !slices.ContainsFunc(t.groups, func(r ref) bool { return affected[r] })
		}
	}
	plans, err := g.compare(ctx, targets)
	if err != nil {
		return err
	}
	e := &execution{g: g, out: out, progress: progress, rooms: map[string]id.RoomID{}}
	for _, p := range plans {
		e.rooms[p.t.key] = p.RoomID
	}
	if err := e.run(ctx, plans); err != nil {
		return err
	}
	return g.clean(ctx, gr, dirty, targets, out)
}

// clean notes which groups are done: those all of whose rooms are.
func (g *Groups) clean(ctx context.Context, gr *graph, dirty []ref, targets map[string]*target, out *Report) error {
	left := map[ref]bool{}
	for key := range out.failed {
		for _, r := range targets[key].groups {
			left[r] = true
		}
	}
	var done []store.CompanyGroup
	for _, r := range dirty {
		again := false
		for up := range gr.affected([]ref{r}) {
			again = again || left[up]
		}
		if !again {
			done = append(done, gr.rows[r])
		}
	}
	for list := range chunks(done, 200) {
		if err := g.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.CleanCompanyGroups(list) }); err != nil {
			return err
		}
	}
	return nil
}

// execution is plans being carried out.
type execution struct {
	g        *Groups
	progress Progress
	told     time.Time

	mu    sync.Mutex
	out   *Report
	rooms map[string]id.RoomID // by target
}

func (e *execution) room(key string) id.RoomID {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.rooms[key]
}

func (e *execution) done(c Counts) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.out.add(c)
	if e.progress != nil && time.Since(e.told) > 500*time.Millisecond {
		e.told = time.Now()
		e.progress(*e.out)
	}
}

func (e *execution) fail(p *RoomPlan, what string, err error) {
	e.g.d.Logger.Warn("the room of a group could not be brought up to date", "group", p.t.key, "room_id", p.RoomID, "while", what, "error", err)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.out.failed == nil {
		e.out.failed = map[string]bool{}
	}
	e.out.failed[p.t.key] = true
	e.out.Errors = append(e.out.Errors, fmt.Sprintf("%s (%s): %s: %v", p.Name, p.t.key, what, err))
}

// run makes what is missing, spaces before what lies in them, then changes what has to change. Only what makes all work
// pointless is an error: the context's end, a database that is away.
func (e *execution) run(ctx context.Context, plans []*RoomPlan) error {
	ok := plans[:0]
	for _, p := range plans {
		switch {
		case p.t.idle:
		case p.Fault != "":
			e.fail(p, "plan", errors.New(p.Fault))
		default:
			ok = append(ok, p)
		}
	}
	plans = ok
	for depth, last := 0, e.depth(plans); depth <= last; depth++ {
		err := e.each(ctx, plans, func(ctx context.Context, p *RoomPlan) error {
			if p.t.depth != depth {
				return nil
			}
			return e.shape(ctx, p)
		})
		if err != nil {
			return err
		}
	}
	return e.each(ctx, plans, e.people)
}

func (e *execution) depth(plans []*RoomPlan) int {
	last := -1
	for _, p := range plans {
		last = max(last, p.t.depth)
	}
	return last
}

// each runs fn for all plans, some at a time.
func (e *execution) each(ctx context.Context, plans []*RoomPlan, fn func(ctx context.Context, p *RoomPlan) error) error {
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(e.g.pace.atOnce)
	for _, p := range plans {
		work.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return fn(ctx, p)
		})
	}
	return work.Wait()
}

// shape makes, renames and moves a room.
func (e *execution) shape(ctx context.Context, p *RoomPlan) error {
	if p.lost.NID != 0 {
		if err := e.g.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.DropGroupRoom(p.lost) }); err != nil {
			return e.failed(ctx, p, "forget a deleted room", err)
		}
	}
	if p.RoomID == "" {
		began := time.Now()
		if err := e.g.create(ctx, p); err != nil {
			return e.failed(ctx, p, "make", err)
		}
		Yield(ctx, e.g.d.Store, time.Since(began))
		e.mu.Lock()
		e.rooms[p.t.key] = p.RoomID
		e.mu.Unlock()
		e.done(Counts{Create: 1})
	} else if p.OldName != "" {
		if err := e.g.rename(ctx, p); err != nil {
			return e.failed(ctx, p, "rename", err)
		}
		e.done(Counts{Rename: 1})
	}
	if !p.move {
		return nil
	}
	parent := e.room(p.t.parent)
	if parent == "" && p.t.parent != "" {
		return nil // it could not be made, which is reported there
	}
	if parent == p.row.Parent {
		return nil
	}
	if err := e.g.move(ctx, p, parent); err != nil {
		return e.failed(ctx, p, "put into its space", err)
	}
	e.done(Counts{Move: 1})
	return nil
}

// failed reports what went wrong in one room, and passes on what would go wrong everywhere.
func (e *execution) failed(ctx context.Context, p *RoomPlan, what string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	e.fail(p, what, err)
	return nil
}

// people brings members and their levels up to date.
func (e *execution) people(ctx context.Context, p *RoomPlan) error {
	if p.RoomID == "" {
		return nil // it could not be made
	}
	for _, step := range []struct {
		what  string
		users []id.UserID
		draft func(ctx context.Context, p *RoomPlan, users []id.UserID) ([][]room.Draft, error)
		note  func(ctx context.Context, p *RoomPlan, users []id.UserID) error
		count func(n int) Counts
	}{
		{"join", p.Join, e.g.joins, e.g.noteIn("group.member.joined"), func(n int) Counts { return Counts{Join: n} }},
		{"invite", p.Invite, e.g.invites, e.g.noteIn("group.member.invited"), func(n int) Counts { return Counts{Invite: n} }},
		{"remove", p.Leave, e.g.kicks, e.g.noteOut, func(n int) Counts { return Counts{Leave: n} }},
	} {
		for list := range chunks(step.users, e.g.pace.unit) {
			began := time.Now()
			ctx := ctx
			if step.what == "remove" { // whoever is to be out is not kept waiting for
				ctx = store.Hurried(ctx)
			}
			did, err := e.unit(ctx, p, list, step.draft)
			if len(did) > 0 {
				if err := step.note(ctx, p, did); err != nil {
					return e.failed(ctx, p, step.what, err)
				}
				e.done(step.count(len(did)))
			}
			if err != nil {
				if err := e.failed(ctx, p, step.what, err); err != nil {
					return err
				}
			}
			if step.what != "remove" {
				Yield(ctx, e.g.d.Store, time.Since(began))
			}
		}
	}
	if err := e.g.settlePlaces(ctx, p); err != nil {
		return e.failed(ctx, p, "note who is in", err)
	}
	if len(p.Levels) > 0 {
		if err := e.g.setLevels(ctx, p); err != nil {
			return e.failed(ctx, p, "set power levels", err)
		}
		e.done(Counts{Levels: len(p.Levels)})
	}
	e.done(Counts{Skipped: len(p.Skipped)})
	return nil
}

// unit sends the events of some users together; if that is refused, those of each user apart, so that only the guilty
// one is left out.
func (e *execution) unit(ctx context.Context, p *RoomPlan, users []id.UserID, draft func(context.Context, *RoomPlan, []id.UserID) ([][]room.Draft, error)) (did []id.UserID, err error) {
	drafts, err := draft(ctx, p, users)
	if err != nil {
		return nil, err
	}
	if _, err = e.g.d.Rooms.SendAll(ctx, p.RoomID, slices.Concat(drafts...)); err == nil {
		return users, nil
	}
	if !refused(err) || len(users) == 1 {
		return nil, err
	}
	var faults []error
	for i, u := range users {
		if _, err := e.g.d.Rooms.SendAll(ctx, p.RoomID, drafts[i]); err != nil {
			if !refused(err) {
				return did, err
			}
			faults = append(faults, fmt.Errorf("%s: %w", u, err))
			continue
		}
		did = append(did, u)
	}
	return did, errors.Join(faults...)
}

// joins are the events by which users join as themselves: the service account vouches for them where the join rule
// allows that, and invites them where it does not.
func (g *Groups) joins(ctx context.Context, p *RoomPlan, users []id.UserID) ([][]room.Draft, error) {
	service, err := g.Service(ctx)
	if err != nil {
		return nil, err
	}
	rm, err := g.d.Rooms.Room(ctx, p.RoomID)
	if err != nil {
		return nil, err
	}
	profiles, err := g.profiles(ctx, users)
	if err != nil {
		return nil, err
	}
	rule := rm.JoinRule()
	vouch := rule == "restricted" && rm.Version().Restricted || rule == "knock_restricted" && rm.Version().KnockRestricted
	out := make([][]room.Draft, len(users))
	for i, u := range users {
		join := memberContent{Membership: "join"}
		if vouch {
			join.AuthorisedVia = service
		} else if rule != "public" && rm.Membership(u) != room.MembershipInvite {
			out[i] = append(out[i], member(service, u, profiles[u], memberContent{Membership: "invite", Reason: p.reason("join")}))
		}
		out[i] = append(out[i], member(u, u, profiles[u], join))
	}
	return out, nil
}

func (g *Groups) invites(ctx context.Context, p *RoomPlan, users []id.UserID) ([][]room.Draft, error) {
	return g.byService(ctx, users, memberContent{Membership: "invite", Reason: p.reason("invite")})
}

func (g *Groups) kicks(ctx context.Context, p *RoomPlan, users []id.UserID) ([][]room.Draft, error) {
	return g.byService(ctx, users, memberContent{Membership: "leave", Reason: p.reason("leave")})
}

func (g *Groups) byService(ctx context.Context, users []id.UserID, c memberContent) ([][]room.Draft, error) {
	service, err := g.Service(ctx)
	if err != nil {
		return nil, err
	}
	profiles := map[id.UserID]store.Profile{}
	if c.Membership == "invite" {
		if profiles, err = g.profiles(ctx, users); err != nil {
			return nil, err
		}
	}
	out := make([][]room.Draft, len(users))
	for i, u := range users {
		out[i] = []room.Draft{member(service, u, profiles[u], c)}
	}
	return out, nil
}

// reason is what member events say.
func (p *RoomPlan) reason(what string) string {
	name := strings.TrimSpace(p.t.name)
	if what == "leave" {
		return fmt.Sprintf("no longer in the group %q", name)
	}
	return fmt.Sprintf("in the group %q", name)
}

// noteIn notes who is in a room because of a group, with an audit entry for each.
func (g *Groups) noteIn(action string) func(ctx context.Context, p *RoomPlan, users []id.UserID) error {
	return func(ctx context.Context, p *RoomPlan, users []id.UserID) error {
		places := make([]store.Placement, len(users))
		for i, u := range users {
			places[i] = store.Placement{Room: p.row.NID, User: u}
		}
		return g.d.Store.Write(ctx, func(tx *store.Tx) error {
			if err := tx.PlaceInGroupRooms(places); err != nil {
				return err
			}
			return g.noteMembers(ctx, tx, action, p, users)
		})
	}
}

func (g *Groups) noteOut(ctx context.Context, p *RoomPlan, users []id.UserID) error {
	return g.d.Store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.UnplaceInGroupRoom(p.row.NID, users); err != nil {
			return err
		}
		return g.noteMembers(ctx, tx, "group.member.removed", p, users)
	})
}

func (g *Groups) noteMembers(ctx context.Context, tx *store.Tx, action string, p *RoomPlan, users []id.UserID) error {
	details := g.details(p.t)
	details["room_id"] = p.RoomID
	for _, u := range users {
		if err := audit.Append(ctx, tx, audit.Entry{Action: action, Target: string(u), Details: details}); err != nil {
			return err
		}
	}
	return nil
}

// settlePlaces notes who was in already, and who is out already.
func (g *Groups) settlePlaces(ctx context.Context, p *RoomPlan) error {
	for list := range chunks(p.place, memberChunk) {
		if err := g.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.PlaceInGroupRooms(list) }); err != nil {
			return err
		}
	}
	for list := range chunks(p.unplace, memberChunk) {
		if err := g.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.UnplaceInGroupRoom(p.row.NID, list) }); err != nil {
			return err
		}
	}
	return nil
}
