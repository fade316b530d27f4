// Package people is the one place where accounts follow an authoritative source: a directory, a provisioning client, an
// identity provider. It makes accounts, brings what the source says of a person into the profile, and bars who is gone.
package people

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// Deps is what People works with.
type Deps struct {
	Store    *store.Store
	Accounts *account.Accounts
	Profiles *account.Profiles
	Logger   *slog.Logger
	Clock    func() time.Time // nil: time.Now

	// SavePhoto keeps a picture as the user's upload and returns its mxc URI. Its errors are mxerr values that say what
	// is wrong with the picture; nil: photos are passed over.
	SavePhoto func(ctx context.Context, user id.UserID, photo []byte) (string, error)
	// DeactivateAfter is how long an account stays barred before it is deactivated for good; 0: for ever.
	DeactivateAfter time.Duration
}

// People makes and follows accounts for sources.
type People struct{ Deps }

// New makes People.
func New(d Deps) *People {
	if d.Clock == nil {
		d.Clock = time.Now
	}
	if d.Logger == nil {
		d.Logger = slog.Default()
	}
	return &People{d}
}

// DirectorySource is the source of the persons of a directory: the key under which they are found and linked.
func DirectorySource(directory string) string { return "directory:" + directory }

// Person is what a source says of somebody. Empty fields are absent: what the source said before of them is removed.
type Person struct {
	Source     string // who says it
	ExternalID string // the source's key of the person, which never changes
	Localpart  string // wanted; used when the account is made
	// LinkExisting lets a person take an account of that localpart that exists and that the source knows nothing of.
	LinkExisting bool

	DisplayName    string
	Email          string
	Phone          string
	Title          string
	Department     string
	Manager        string
	EmployeeNumber string
	TimeZone       string // IANA name
	Photo          []byte
	Active         bool
	Attributes     map[string]string // further profile fields by their Matrix names

	// With is called in the transaction that makes the account, for what is to come with it; it announces nothing.
	With func(tx *store.Tx, user id.UserID) error
}

// Change is what Upsert did.
type Change struct {
	Created, Linked, Enabled, Disabled bool
	Fields                             []string // profile fields that have another value now
	Warnings                           []string // what could not be taken over, for people
}

// Any tells whether anything changed.
func (c Change) Any() bool {
	return c.Created || c.Linked || c.Enabled || c.Disabled || len(c.Fields) > 0
}

// Link is who an account is for a source.
type Link struct {
	Source, ExternalID string
	User               id.UserID
	Created            int64 // ms
	Active             bool
	Reason             string
}

func linkOf(e store.ExternalID) Link {
	return Link{Source: e.Source, ExternalID: e.ID, User: e.User, Created: e.Created, Active: e.Active, Reason: e.Reason}
}

// Names of the profile fields that persons have beside display name, avatar and time zone.
const (
	FieldEmail          = "org.moothall.email"
	FieldPhone          = "org.moothall.phone"
	FieldTitle          = "org.moothall.title"
	FieldDepartment     = "org.moothall.department"
	FieldManager        = "org.moothall.manager"
	FieldEmployeeNumber = "org.moothall.employee_number"
	fieldTimeZone       = "m.tz"
	fieldDisplayName    = "displayname"
	fieldAvatar         = "avatar_url"
)

// said is what a source said last, as it is stored.
type said struct {
	DisplayName string            `json:"displayname,omitzero"`
	Email       string            `json:"email,omitzero"`
	Photo       string            `json:"photo,omitzero"` // SHA-256
	Fields      map[string]string `json:"fields,omitzero"`
}

func (p *Person) said() said {
	s := said{DisplayName: p.DisplayName, Fields: map[string]string{}}
	if address, err := account.CanonicalEmail(p.Email); err == nil {
		s.Email = address
	}
	if len(p.Photo) > 0 {
		sum := sha256.Sum256(p.Photo)
		s.Photo = hex.EncodeToString(sum[:])
	}
	maps.Copy(s.Fields, p.Attributes)
	for name, value := range map[string]string{
		FieldEmail: s.Email, FieldPhone: p.Phone, FieldTitle: p.Title, FieldDepartment: p.Department,
		FieldManager: p.Manager, FieldEmployeeNumber: p.EmployeeNumber, fieldTimeZone: p.TimeZone,
	} {
		if value != "" {
			s.Fields[name] = value
		}
	}
	if len(s.Fields) == 0 {
		s.Fields = nil
	}
	return s
}

func (s said) content() (store.Content, error) { return json.Marshal(s, json.Deterministic(true)) }

func readSaid(c store.Content) (said, error) {
	var s said
	if c == nil {
		return s, nil
	}
	err := json.Unmarshal(c, &s)
	return s, err
}

// errTaken says that somebody else made the account or the link meanwhile.
var errTaken = errors.New("the account was made meanwhile")

// Upsert makes an account for a person or brings it up to date. A person who is not active and has no account gets none:
// the user id is "" then. Errors are M_INVALID_USERNAME and M_USER_IN_USE for localparts that cannot be had; what else
// cannot be taken over of a person stands in Change.Warnings.
func (p *People) Upsert(ctx context.Context, person Person) (id.UserID, Change, error) {
	if person.Source == "" || person.ExternalID == "" {
		return "", Change{}, mxerr.InvalidParam("a person needs a source and an id there")
	}
	for range 3 {
		link, found, err := p.read(ctx, person.Source, person.ExternalID)
		switch {
		case err != nil:
			return "", Change{}, err
		case found:
			change, err := p.update(ctx, person, link, Change{})
			return link.User, change, err
		case !person.Active:
			return "", Change{}, nil
		}
		user, change, err := p.create(ctx, person)
		if !errors.Is(err, errTaken) {
			return user, change, err
		}
	}
	return "", Change{}, errTaken
}

func (p *People) read(ctx context.Context, source, externalID string) (e store.ExternalID, found bool, err error) {
	err = p.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		e, found, err = tx.ExternalID(source, externalID)
		return err
	})
	return e, found, err
}

// create makes the account and all that belongs to it in one transaction, the photo excepted.
func (p *People) create(ctx context.Context, person Person) (id.UserID, Change, error) {
	change := Change{Created: true}
	now := person.said()
	bare := now
	bare.Photo = ""
	content, err := bare.content()
	if err != nil {
		return "", change, err
	}
	var warnings []string
	u, err := p.Accounts.CreateUser(ctx, account.NewUser{
		Localpart: person.Localpart, DisplayName: person.DisplayName, Fields: now.Fields,
		With: func(tx *store.Tx, user id.UserID) error {
			warnings = nil
			ms := p.Clock().UnixMilli()
			linked, err := tx.InsertExternalID(store.ExternalID{
				Source: person.Source, ID: person.ExternalID, User: user, Created: ms, Active: true, Person: content,
			})
			if err == nil && !linked {
				err = errTaken
			}
			if err != nil {
				return err
			}
			if warnings, err = setEmail(tx, user, "", now.Email, ms); err != nil {
				return err
			}
			if person.With != nil {
				if err := person.With(tx, user); err != nil {
					return err
				}
			}
			return p.note(ctx, tx, act{person: &person, user: user, what: "created", after: now})
		},
	})
	if mxerr.Is(err, "M_USER_IN_USE") {
		return p.adopt(ctx, person, err)
	}
	if err != nil {
		return "", change, err
	}
	change.Warnings = warnings
	if now.Photo == "" {
		return u.ID, change, nil
	}
	change, err = p.update(ctx, person, store.ExternalID{Source: person.Source, ID: person.ExternalID, User: u.ID, Active: true, Person: content}, change)
	return u.ID, change, err
}

// adopt links an account that exists already, where that is allowed.
func (p *People) adopt(ctx context.Context, person Person, refused error) (id.UserID, Change, error) {
	local, err := p.Accounts.Localpart(person.Localpart)
	if err != nil {
		return "", Change{}, err
	}
	user := p.Accounts.UserID(local)
	if _, found, err := p.read(ctx, person.Source, person.ExternalID); err != nil || found {
		return "", Change{}, errors.Join(err, errIf(found, errTaken))
	}
	links, err := p.Links(ctx, user)
	if err != nil {
		return "", Change{}, err
	}
	if i := slices.IndexFunc(links, func(l Link) bool { return l.Source == person.Source }); i >= 0 {
		return "", Change{}, mxerr.New(http.StatusBadRequest, "M_USER_IN_USE",
			fmt.Sprintf("%s belongs to another entry (%s)", user, links[i].ExternalID))
	}
	if !person.LinkExisting {
		e := mxerr.As(refused)
		return "", Change{}, mxerr.New(e.Status, e.Code, fmt.Sprintf("%s exists already and is not linked to this source", user))
	}
	if err := p.Link(ctx, person.Source, person.ExternalID, user); err != nil {
		return "", Change{}, err
	}
	link, _, err := p.read(ctx, person.Source, person.ExternalID)
	if err != nil {
		return "", Change{}, err
	}
	change, err := p.update(ctx, person, link, Change{Linked: true})
	return user, change, err
}

func errIf(cond bool, err error) error {
	if cond {
		return err
	}
	return nil
}

// update brings an account to what the source says now. What failed is not noted as said, so that it is tried again.
func (p *People) update(ctx context.Context, person Person, link store.ExternalID, change Change) (Change, error) {
	if !person.Active {
		off, err := p.disable(ctx, link, "the source says that the account is disabled", &person)
		change.Disabled = off
		return change, err
	}
	u, err := p.Accounts.User(ctx, link.User)
	if err != nil {
		return change, err
	}
	if u.Deactivated {
		change.Warnings = append(change.Warnings, fmt.Sprintf("%s was deactivated for good: the person needs another account", link.User))
		return change, nil
	}
	before, err := readSaid(link.Person)
	if err != nil {
		return change, fmt.Errorf("read what was known of %s: %w", link.User, err)
	}
	now := person.said()
	if err := p.updateFields(ctx, person, link, before, now, &change); err != nil {
		return change, err
	}
	if !link.Active || u.Disabled != 0 {
		change.Enabled, err = p.enable(ctx, link, &person)
	}
	return change, err
}

func (p *People) updateFields(ctx context.Context, person Person, link store.ExternalID, before, now said, change *Change) error {
	fields := map[string]string{}
	for name := range before.Fields {
		if now.Fields[name] == "" {
			fields[name] = ""
		}
	}
	for name, value := range now.Fields {
		if before.Fields[name] != value {
			fields[name] = value
		}
	}
	if before.DisplayName != now.DisplayName {
		fields[fieldDisplayName] = now.DisplayName
	}
	if before.Photo != now.Photo {
		uri, err := p.photo(ctx, link.User, person.Photo)
		switch {
		case err == nil:
			fields[fieldAvatar] = uri
		case mxerr.As(err) != nil:
			change.Warnings = append(change.Warnings, "the photo is passed over: "+mxerr.As(err).Message)
			now.Photo = before.Photo
		default:
			return err
		}
	}
	emailChanged := before.Email != now.Email
	if len(fields) == 0 && !emailChanged {
		return nil
	}
	if len(fields) > 0 {
		changed, err := p.Profiles.SetAll(ctx, link.User, fields)
		if err != nil {
			return err
		}
		change.Fields = append(change.Fields, changed...)
	}
	content, err := now.content()
	if err != nil {
		return err
	}
	var warnings []string
	err = p.Store.Write(ctx, func(tx *store.Tx) error {
		warnings = nil
		if emailChanged {
			var err error
			if warnings, err = setEmail(tx, link.User, before.Email, now.Email, p.Clock().UnixMilli()); err != nil {
				return err
			}
		}
		if err := tx.SetExternalPerson(link.Source, link.ID, content); err != nil {
			return err
		}
		return p.note(ctx, tx, act{person: &person, user: link.User, what: "updated", before: before, after: now, fields: change.Fields})
	})
	change.Warnings = append(change.Warnings, warnings...)
	return err
}

func (p *People) photo(ctx context.Context, user id.UserID, photo []byte) (string, error) {
	if len(photo) == 0 {
		return "", nil
	}
	if p.SavePhoto == nil {
		return "", mxerr.InvalidParam("this server keeps no photos")
	}
	return p.SavePhoto(ctx, user, photo)
}

// setEmail takes the address that a source knew before from an account and adds the one it knows now, as proved: the
// source vouches for it. An address that belongs to another account stays there.
func setEmail(tx *store.Tx, user id.UserID, before, now string, ms int64) (warnings []string, err error) {
	if before != "" && before != now {
		if _, err := tx.DeleteThreepid(user, store.MediumEmail, before); err != nil {
			return nil, err
		}
	}
	if now == "" {
		return nil, nil
	}
	added, err := tx.InsertThreepid(store.Threepid{Medium: store.MediumEmail, Address: now, User: user, Validated: ms, Added: ms})
	if err != nil || added {
		return nil, err
	}
	owner, found, err := tx.ThreepidUser(store.MediumEmail, now)
	if err == nil && found && owner != user {
		warnings = []string{fmt.Sprintf("the address %s belongs to %s already: it is not added", now, owner)}
	}
	return warnings, err
}
