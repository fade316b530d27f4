package hr

import (
	"context"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	companygroups "github.com/moothall/moothall/homeserver/groups"
	"github.com/moothall/moothall/homeserver/store"
)

// groupStore keeps groups. Their members lie with package groups, whose rooms follow them.
type groupStore struct{ *HR }

func (h *HR) groups() resources { return groupStore{h} }

func (s groupStore) read(ctx context.Context, row store.SCIMGroup, members bool) (*resource, error) {
	res := &resource{id: row.ID, version: row.Version, created: row.Created, modified: row.Modified}
	if err := json.Unmarshal(row.Doc, &res.attrs); err != nil {
		return nil, err
	}
	if !members {
		return res, nil
	}
	g, found, err := s.d.Groups.Find(ctx, Source, row.ID)
	if err != nil || !found {
		return res, err
	}
	var ids map[id.UserID]string
	err = s.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		var err error
		ids, err = tx.SCIMUserIDs(g.Members)
		return err
	})
	var list []any
	for _, u := range g.Members {
		if v := ids[u]; v != "" {
			list = append(list, object{"value": v, "type": "User", "$ref": s.location(users, v)})
		}
	}
	for _, n := range g.Nested {
		list = append(list, object{"value": n, "type": "Group", "$ref": s.location(groups, n)})
	}
	slices.SortFunc(list, func(a, b any) int { return strings.Compare(text(a.(object), "value"), text(b.(object), "value")) })
	if list != nil {
		res.attrs["members"] = list
	}
	return res, err
}

func (s groupStore) row(ctx context.Context, groupID string) (store.SCIMGroup, error) {
	var row store.SCIMGroup
	err := s.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		var found bool
		var err error
		if row, found, err = tx.SCIMGroup(groupID); err == nil && !found {
			err = notFound("group", groupID)
		}
		return err
	})
	return row, err
}

func (s groupStore) get(ctx context.Context, groupID string) (*resource, error) {
	row, err := s.row(ctx, groupID)
	if err != nil {
		return nil, err
	}
	return s.read(ctx, row, true)
}

func (s groupStore) list(ctx context.Context, f *filter, all bool, offset, limit int64, members bool) ([]*resource, int64, error) {
	var rows []store.SCIMGroup
	var total int64
	err := s.d.Store.Read(ctx, func(tx *store.Tx) (err error) {
		if !all {
			if total, err = tx.CountSCIMGroups(); err == nil {
				rows, err = tx.SCIMGroups(offset, limit)
			}
			return err
		}
		rows, err = candidates(f, "displayName", func(id string) ([]store.SCIMGroup, error) { return tx.SCIMGroupsByID([]string{id}) },
			tx.SCIMGroupBy, func() ([]store.SCIMGroup, error) { return tx.SCIMGroups(0, 1<<40) })
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	out := make([]*resource, 0, len(rows))
	for _, row := range rows {
		res, err := s.read(ctx, row, members)
		if err != nil {
			return nil, 0, err
		}
		out = append(out, res)
	}
	return out, total, nil
}

// split takes the members out of a resource: users by their accounts, groups by their ids.
func (s groupStore) split(ctx context.Context, groupID string, o object) (doc object, g companygroups.Group, err error) {
	doc = clone(o).(object)
	delete(doc, "members")
	g = companygroups.Group{Source: Source, ExternalID: groupID, Kind: companygroups.KindGroup, Name: text(o, "displayName")}
	list, _ := o["members"].([]any)
	values := make([]string, 0, len(list))
	for _, m := range list {
		v := text(m.(object), "value")
		if v == "" {
			return nil, g, bad(invalidValue, "every member needs a value: the id of a user or group")
		}
		values = append(values, v)
	}
	known := map[string]id.UserID{}
	nested := map[string]bool{}
	err = s.d.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		if known, err = tx.SCIMAccounts(values); err != nil || len(known) == len(values) {
			return err
		}
		rows, err := tx.SCIMGroupsByID(values)
		for _, r := range rows {
			nested[r.ID] = true
		}
		return err
	})
	if err != nil {
		return nil, g, err
	}
	for _, v := range values {
		switch {
		case known[v] != "":
			g.Members = append(g.Members, known[v])
		case nested[v]:
			g.Nested = append(g.Nested, v)
		default:
			return nil, g, bad(invalidValue, "there is no user and no group %q to be a member", v)
		}
	}
	return doc, g, nil
}

func (s groupStore) create(ctx context.Context, o object) (*resource, error) {
	now := s.now()
	return s.save(ctx, store.SCIMGroup{ID: newID(), Created: now}, o)
}

func (s groupStore) write(ctx context.Context, groupID string, o object, before int64) (*resource, error) {
	row, err := s.row(ctx, groupID)
	if err != nil {
		return nil, err
	}
	if row.Version != before {
		return nil, stale()
	}
	return s.save(ctx, row, o)
}

func (s groupStore) save(ctx context.Context, row store.SCIMGroup, o object) (*resource, error) {
	doc, g, err := s.split(ctx, row.ID, o)
	if err != nil {
		return nil, err
	}
	if row.Doc, err = json.Marshal(doc, json.Deterministic(true)); err != nil {
		return nil, err
	}
	before := row.Version
	row.Version, row.Modified = before+1, s.now()
	row.Name, row.ExternalID = store.FoldName(g.Name), text(o, "externalId")
	err = s.d.Store.Write(ctx, func(tx *store.Tx) error {
		ok, err := tx.SaveSCIMGroup(row, before)
		if err == nil && !ok {
			err = stale()
		}
		if err != nil {
			return err
		}
		return s.d.Groups.Write(tx, g) // with its row: who changes the group next builds upon these members
	})
	if err != nil {
		return nil, err
	}
	s.d.Groups.Wake()
	return s.read(ctx, row, true)
}

func (s groupStore) remove(ctx context.Context, groupID string, version int64) error {
	err := s.d.Store.Write(ctx, func(tx *store.Tx) error {
		ok, err := tx.DeleteSCIMGroup(groupID, version)
		switch {
		case err != nil || ok:
			return err
		case version != 0:
			return stale()
		}
		return notFound("group", groupID)
	})
	if err != nil {
		return err
	}
	return s.d.Groups.Put(ctx, Source, companygroups.Group{ExternalID: groupID, Gone: true})
}
