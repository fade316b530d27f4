package ldapsync

import (
	"context"
	"errors"
	"fmt"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// Relinked is what Relink did.
type Relinked struct {
	User id.UserID `json:"user_id"`
	DN   string    `json:"dn"`
	ID   string    `json:"id"`  // the entry's key
	Run  string    `json:"run"` // the complete comparison that follows
}

// Relink says that an account is that of another entry of a directory: one that was deleted there and made anew, or restored from
// elsewhere, has another key. name is what the person signs in with there. The account keeps its id, rooms, devices and keys. Errors:
// M_NOT_FOUND for accounts and names that there are not, M_USER_IN_USE for the entry of another account, 503 where the directory
// cannot be asked.
func (s *Sync) Relink(ctx context.Context, directory string, user id.UserID, name, by string) (*Relinked, error) {
	d, err := s.find(directory)
	if err != nil {
		return nil, err
	}
	if name == "" {
		return nil, mxerr.MissingParam("a name is required by which the directory knows the person")
	}
	e, err := d.entryOf(ctx, name)
	if err != nil {
		return nil, err
	}
	if err := s.People.Relink(ctx, d.source, e.id, user); err != nil {
		return nil, err
	}
	run, err := s.ask(ctx, directory, request{By: by}, "directory.sync.requested")
	return &Relinked{User: user, DN: e.dn, ID: e.id, Run: run}, err
}

// entryOf reads the one entry that a sign-in name belongs to.
func (d *directory) entryOf(ctx context.Context, name string) (*entry, error) {
	conn, server, done, err := d.dialer.service(ctx)
	if err != nil {
		return nil, mxerr.Unavailable(err.Error())
	}
	defer done()
	raw, err := d.lookup(conn, loginFilter(d.cfg.Users.Login, name))
	switch {
	case errors.Is(err, errUnknownName):
		return nil, mxerr.NotFound("the directory " + d.cfg.ID + " has no entry for the name " + name)
	case errors.Is(err, errWrong):
		return nil, mxerr.InvalidParam("the name " + name + " is that of several entries in the directory " + d.cfg.ID)
	case err != nil:
		return nil, mxerr.Unavailable(fmt.Sprintf("%s: %v", server, err))
	}
	e := d.mapper.user(raw)
	if e.id == "" {
		return nil, mxerr.Unavailable(fmt.Sprintf("the attribute %s of %s cannot be read", d.cfg.Users.ID, e.dn))
	}
	return e, nil
}
