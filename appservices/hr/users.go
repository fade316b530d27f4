package hr

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	companygroups "github.com/moothall/moothall/homeserver/groups"
	"github.com/moothall/moothall/homeserver/people"
	"github.com/moothall/moothall/homeserver/store"
)

// userStore keeps persons.
type userStore struct{ *HR }

func (h *HR) users() resources { return userStore{h} }

// newID draws the id of a resource.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// read makes a resource of a row.
func (s userStore) read(ctx context.Context, row store.SCIMUser) (*resource, error) {
	list, err := s.readAll(ctx, []store.SCIMUser{row})
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// readAll makes resources of rows, with the groups that the persons are in.
func (s userStore) readAll(ctx context.Context, rows []store.SCIMUser) ([]*resource, error) {
	accounts := make([]id.UserID, len(rows))
	for i, row := range rows {
		accounts[i] = row.User
	}
	in := map[id.UserID][]any{}
	for list := range slices.Chunk(accounts, maxResults) {
		err := s.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
			for _, u := range list {
				delete(in, u)
			}
			return tx.CompanyGroupsByUser(list, func(u id.UserID, g store.CompanyGroup) {
				if g.Source == Source && g.Kind == companygroups.KindGroup && !g.Gone {
					in[u] = append(in[u], object{"value": g.ID, "display": g.Name, "type": "direct", "$ref": s.location(groups, g.ID)})
				}
			})
		})
		if err != nil {
			return nil, err
		}
	}
	out := make([]*resource, len(rows))
	for i, row := range rows {
		res := &resource{id: row.ID, version: row.Version, created: row.Created, modified: row.Modified}
		if err := json.Unmarshal(row.Doc, &res.attrs); err != nil {
			return nil, err
		}
		if list := in[row.User]; list != nil {
			res.attrs["groups"] = list
		}
		out[i] = res
	}
	return out, nil
}

func (s userStore) row(ctx context.Context, userID string) (store.SCIMUser, error) {
	var row store.SCIMUser
	err := s.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		var found bool
		var err error
		if row, found, err = tx.SCIMUser(userID); err == nil && (!found || row.Deleted) {
			err = notFound("user", userID)
		}
		return err
	})
	return row, err
}

func (s userStore) get(ctx context.Context, userID string) (*resource, error) {
	row, err := s.row(ctx, userID)
	if err != nil {
		return nil, err
	}
	return s.read(ctx, row)
}

func (s userStore) list(ctx context.Context, f *filter, all bool, offset, limit int64, _ bool) ([]*resource, int64, error) {
	var rows []store.SCIMUser
	var total int64
	err := s.d.Store.Read(ctx, func(tx *store.Tx) (err error) {
		if !all {
			if total, err = tx.CountSCIMUsers(); err == nil {
				rows, err = tx.SCIMUsers(offset, limit)
			}
			return err
		}
		rows, err = candidates(f, "userName", func(id string) ([]store.SCIMUser, error) {
			u, found, err := tx.SCIMUser(id)
			if !found {
				return nil, err
			}
			return []store.SCIMUser{u}, err
		}, tx.SCIMUserBy, func() ([]store.SCIMUser, error) { return tx.SCIMUsers(0, 1<<40) })
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	rows = slices.DeleteFunc(rows, func(row store.SCIMUser) bool { return row.Deleted })
	out, err := s.readAll(ctx, rows)
	return out, total, err
}

// candidates finds the rows that a filter may match by an index where it demands an id, a name or an external id.
func candidates[T any](f *filter, name string, byID func(string) ([]T, error), by func(name, external string) ([]T, error), all func() ([]T, error)) ([]T, error) {
	if f != nil {
		if v, ok := f.exact("id"); ok {
			return byID(v)
		}
		if v, ok := f.exact(name); ok && v != "" {
			return by(store.FoldName(v), "")
		}
		if v, ok := f.exact("externalId"); ok {
			return by("", v)
		}
	}
	return all()
}

// fill puts what the columns of a row say of a resource into it.
func (h *HR) fill(row *store.SCIMUser, o object) error {
	doc := clone(o).(object)
	delete(doc, "groups")
	b, err := json.Marshal(doc, json.Deterministic(true))
	if err != nil {
		return err
	}
	row.Doc, row.UserName, row.ExternalID = b, store.FoldName(text(o, "userName")), text(o, "externalId")
	row.Active = true
	if active, ok := o["active"].(bool); ok {
		row.Active = active
	}
	row.Start, row.End = 0, 0
	for name, into := range map[string]*int64{"startDate": &row.Start, "endDate": &row.End} {
		if s := text(o, employmentURN, name); s != "" {
			t, err := parseTime(s)
			if err != nil {
				return bad(invalidValue, "%s is no date", name)
			}
			*into = max(t.UnixMilli(), 1)
		}
	}
	row.Modified = h.now()
	return nil
}

// barred says why an account cannot be used now, "" where it can, and when that changes next (ms, 0: never).
func barred(row *store.SCIMUser, now int64) (reason string, next int64) {
	switch {
	case row.Deleted:
		return "deleted by the HR system", 0
	case row.End != 0 && row.End <= now:
		return "the last day is over", 0
	case row.Start > now:
		return "the first day has not come", row.Start
	}
	if !row.Active {
		reason = "set inactive by the HR system"
	}
	return reason, row.End
}

// person is what package people is told.
func (h *HR) person(ctx context.Context, row *store.SCIMUser, o object) (people.Person, error) {
	local, err := h.localpartOf(o)
	if err != nil {
		return people.Person{}, err
	}
	p := people.Person{
		Source: Source, ExternalID: row.ID, Localpart: local, LinkExisting: h.d.Config.LinkExisting, Active: true,
		DisplayName: displayName(o), Email: preferred(o, "emails", "work"), Phone: preferred(o, "phoneNumbers", "work", "mobile"),
		Title: text(o, "title"), TimeZone: text(o, "timezone"),
		Department: text(o, enterpriseURN, "department"), EmployeeNumber: text(o, enterpriseURN, "employeeNumber"),
	}
	if manager := text(o, enterpriseURN, "manager", "value"); manager != "" {
		err = h.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
			found, err := tx.SCIMAccounts([]string{manager})
			p.Manager = string(found[manager])
			return err
		})
	}
	p.Photo = photo(preferred(o, "photos", "photo"))
	return p, err
}

func displayName(o object) string {
	for _, s := range []string{text(o, "displayName"), text(o, "name", "formatted")} {
		if s != "" {
			return s
		}
	}
	given, family := text(o, "name", "givenName"), text(o, "name", "familyName")
	for _, c := range given + family {
		if c >= 0x2E80 { // names in Chinese, Japanese and Korean begin with the family and have no space
			return family + given
		}
	}
	if s := strings.TrimSpace(given + " " + family); s != "" {
		return s
	}
	return text(o, "userName")
}

// photo reads a data: URI; pictures elsewhere are not fetched.
func photo(uri string) []byte {
	head, data, ok := strings.Cut(uri, ",")
	if !ok || !strings.HasPrefix(head, "data:image/") || !strings.HasSuffix(head, ";base64") {
		return nil
	}
	b, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		return nil
	}
	return b
}

var errNameTaken = errors.New("the user name is taken")

func (s userStore) create(ctx context.Context, o object) (*resource, error) {
	row := store.SCIMUser{ID: newID(), Version: 1, Applied: 1, Created: s.now()}
	if err := s.fill(&row, o); err != nil {
		return nil, err
	}
	var before []store.SCIMUser
	err := s.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		var err error
		before, err = tx.SCIMUserBy(row.UserName, "")
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case len(before) > 0 && !before[0].Deleted:
		return nil, conflict("there is a user %q already", text(o, "userName"))
	case len(before) > 0: // somebody who left comes back: to the same account
		return s.update(ctx, before[0], o)
	}
	p, err := s.person(ctx, &row, o)
	if err != nil {
		return nil, err
	}
	reason, next := barred(&row, row.Created)
	row.Next = next
	if reason != "" {
		row.Next = row.Created // until it is barred
	}
	if s.d.Config.Welcome {
		if row.Greet = 1; reason == "" {
			row.Next = row.Created
		}
	}
	inserted := false
	insert := func(tx *store.Tx, user id.UserID) error {
		row.User = user
		if s.d.Config.Departments && !(row.End != 0 && row.End <= row.Created) {
			row.Department = p.Department
		}
		ok, err := tx.InsertSCIMUser(row)
		if err == nil && !ok {
			err = errNameTaken
		}
		if inserted = err == nil; !inserted || row.Department == "" {
			return err
		}
		return s.d.Groups.AddTo(tx, department(row.Department), []id.UserID{user})
	}
	p.With = insert
	user, change, err := s.d.People.Upsert(ctx, p)
	if err == nil && !inserted { // an account that existed was taken
		err = s.d.Store.Write(ctx, func(tx *store.Tx) error { return insert(tx, user) })
	}
	if errors.Is(err, errNameTaken) {
		return nil, conflict("there is a user %q already", text(o, "userName"))
	}
	if err != nil {
		return nil, err
	}
	for _, w := range change.Warnings {
		s.d.Logger.Warn("something of a person was not taken over", "user_id", user, "why", w)
	}
	if row.Department != "" {
		s.d.Groups.Wake()
	}
	if reason != "" {
		if err := s.apply(ctx, row, o); err != nil {
			return nil, err
		}
	} else if row.Next != 0 {
		s.wake()
	}
	return s.read(ctx, row)
}

// department is the unit of a department.
func department(name string) companygroups.Group {
	return companygroups.Group{Source: Source, ExternalID: departmentID(name), Name: name, Kind: companygroups.KindUnit}
}

func departmentID(name string) string { return "department/" + store.FoldName(name) }

func (s userStore) write(ctx context.Context, userID string, o object, before int64) (*resource, error) {
	row, err := s.row(ctx, userID)
	if err != nil {
		return nil, err
	}
	if row.Version != before {
		return nil, stale()
	}
	return s.update(ctx, row, o)
}

// update stores a person who changed, then brings the account after. Should the second be interrupted, Run does it.
func (s userStore) update(ctx context.Context, row store.SCIMUser, o object) (*resource, error) {
	before := row.Version
	row.Version, row.Deleted = before+1, false
	if err := s.fill(&row, o); err != nil {
		return nil, err
	}
	if _, err := s.localpartOf(o); err != nil {
		return nil, err
	}
	row.Next = s.now() + graceMS
	err := s.d.Store.Write(ctx, func(tx *store.Tx) error {
		ok, err := tx.UpdateSCIMUser(row, before)
		if err != nil || ok {
			return err
		}
		if others, err := tx.SCIMUserBy(row.UserName, ""); err != nil {
			return err
		} else if len(others) > 0 && others[0].ID != row.ID {
			return conflict("there is a user %q already", text(o, "userName"))
		}
		return stale()
	})
	if err != nil {
		return nil, err
	}
	if err := s.apply(ctx, row, o); err != nil {
		return nil, err
	}
	return s.read(ctx, row)
}

// graceMS is how long the request that changed somebody has to bring the account after, before Run does.
const graceMS = 30_000

// apply brings the account to what a row says now.
func (h *HR) apply(ctx context.Context, row store.SCIMUser, o object) error {
	now := h.now()
	reason, next := barred(&row, now)
	if reason != "" {
		if err := h.d.People.Disable(ctx, Source, row.ID, reason); err != nil {
			return err
		}
	} else {
		p, err := h.person(ctx, &row, o)
		if err != nil {
			return err
		}
		_, change, err := h.d.People.Upsert(ctx, p)
		if err != nil {
			return err
		}
		for _, w := range change.Warnings {
			h.d.Logger.Warn("something of a person was not taken over", "user_id", row.User, "why", w)
		}
	}
	unit := ""
	if h.d.Config.Departments && !row.Deleted && !(row.End != 0 && row.End <= now) {
		unit = text(o, enterpriseURN, "department")
	}
	if row.Greet == 1 && reason == "" {
		next = now
	}
	moved := false
	err := h.d.Store.Write(ctx, func(tx *store.Tx) error {
		current, found, err := tx.SCIMUser(row.ID)
		if moved = false; err != nil || !found || current.Version != row.Version {
			return err // whoever changed the person meanwhile brings the account after
		}
		if current.Department != unit {
			moved = true
			if err := h.moveUnit(tx, row.User, current.Department, unit); err != nil {
				return err
			}
		}
		row.Department = unit
		return tx.AppliedSCIMUser(row, next)
	})
	if err != nil {
		return err
	}
	if moved {
		h.d.Groups.Wake()
	}
	if next != 0 {
		h.wake() // Run looks again when something is due
	}
	return nil
}

// moveUnit takes somebody from one department to another. Rows are locked in the order of their ids.
func (h *HR) moveUnit(tx *store.Tx, user id.UserID, from, to string) error {
	list := []id.UserID{user}
	leave := func() error {
		if from == "" || departmentID(from) == departmentID(to) {
			return nil
		}
		return h.d.Groups.RemoveFrom(tx, Source, departmentID(from), list)
	}
	enter := func() error {
		if to == "" {
			return nil
		}
		return h.d.Groups.AddTo(tx, department(to), list)
	}
	if departmentID(from) > departmentID(to) {
		leave, enter = enter, leave
	}
	if err := leave(); err != nil {
		return err
	}
	return enter()
}

func (s userStore) remove(ctx context.Context, userID string, version int64) error {
	for range changeTries {
		row, err := s.row(ctx, userID)
		if err != nil {
			return err
		}
		if version != 0 && row.Version != version {
			return stale()
		}
		before := row.Version
		row.Version, row.Deleted, row.Modified, row.Next = before+1, true, s.now(), s.now()+graceMS
		done := false
		err = s.d.Store.Write(ctx, func(tx *store.Tx) error {
			var err error
			done, err = tx.UpdateSCIMUser(row, before)
			return err
		})
		if err != nil {
			return err
		}
		if done {
			return s.gone(ctx, row)
		}
	}
	return stale()
}

// gone bars the account of somebody who was deleted, and takes them out of their groups.
func (h *HR) gone(ctx context.Context, row store.SCIMUser) error {
	var in []store.CompanyGroup
	err := h.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		var err error
		in, err = tx.CompanyGroupsOf([]id.UserID{row.User})
		return err
	})
	if err != nil {
		return err
	}
	err = h.d.Store.Write(ctx, func(tx *store.Tx) error {
		for _, g := range in {
			if g.Source == Source {
				if err := h.d.Groups.RemoveFrom(tx, Source, g.ID, []id.UserID{row.User}); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	h.d.Groups.Wake()
	return h.apply(ctx, row, object{})
}
