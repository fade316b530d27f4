package account

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// ProfilesDeps is what Profiles works with.
type ProfilesDeps struct {
	Store      *store.Store
	ServerName string
	Logger     *slog.Logger

	// Propagate brings a new display name and avatar into the rooms of a user. It is called after the profile was
	// stored; nil: there are no rooms.
	Propagate func(ctx context.Context, user id.UserID, displayName, avatarURL string) error
	// Everyone lets the directory find all users of this server.
	Everyone bool
}

// Profiles reads and writes profiles and searches the user directory.
type Profiles struct {
	ProfilesDeps
	open *openEvents
}

// NewProfiles makes Profiles.
func NewProfiles(d ProfilesDeps) *Profiles {
	if d.Logger == nil {
		d.Logger = slog.Default()
	}
	return &Profiles{d, &openEvents{known: map[int64]bool{}}}
}

const (
	fieldDisplayName = "displayname"
	fieldAvatarURL   = "avatar_url"
	fieldTimeZone    = "m.tz"

	maxProfile     = 64 << 10 // bytes of a profile's JSON
	maxDisplayName = 256      // characters
	maxAvatarURL   = 1000     // bytes
)

var errNoProfile = mxerr.NotFound("there is no such user, or the user has no such profile field")

// Profile is what a user shows of themselves; empty strings are absent.
type Profile struct {
	DisplayName string
	AvatarURL   string
	Fields      map[string]jsontext.Value // all others
}

func newProfile(p store.Profile) (Profile, error) {
	var out Profile
	if p.DisplayName != nil {
		out.DisplayName = *p.DisplayName
	}
	if p.AvatarURL != nil {
		out.AvatarURL = *p.AvatarURL
	}
	if p.Fields == nil {
		return out, nil
	}
	if err := json.Unmarshal(p.Fields, &out.Fields); err != nil {
		return out, fmt.Errorf("read the profile of %s: %w", p.User, err)
	}
	return out, nil
}

// All is the profile by field names.
func (p *Profile) All() map[string]jsontext.Value {
	out := make(map[string]jsontext.Value, len(p.Fields)+2)
	for name, value := range p.Fields {
		out[name] = value
	}
	for name, s := range map[string]string{fieldDisplayName: p.DisplayName, fieldAvatarURL: p.AvatarURL} {
		if s != "" {
			out[name] = quote(s)
		}
	}
	return out
}

func quote(s string) jsontext.Value {
	v, err := jsontext.AppendQuote(nil, s)
	if err != nil {
		return jsontext.Value(`""`) // only for invalid UTF-8, which the store refuses
	}
	return v
}

// Get reads a user's profile. A user who is not known here is M_NOT_FOUND.
func (p *Profiles) Get(ctx context.Context, user id.UserID) (Profile, error) {
	var stored store.Profile
	err := p.Store.Read(ctx, func(tx *store.Tx) error {
		exists, err := tx.UserExists(user)
		if err != nil {
			return err
		}
		if !exists {
			return errNoProfile
		}
		stored, err = tx.Profile(user)
		return err
	})
	if err != nil {
		return Profile{}, err
	}
	return newProfile(stored)
}

// Field reads one field as JSON; M_NOT_FOUND where there is none.
func (p *Profiles) Field(ctx context.Context, user id.UserID, name string) (jsontext.Value, error) {
	profile, err := p.Get(ctx, user)
	if err != nil {
		return nil, err
	}
	value, ok := profile.All()[name]
	if !ok {
		return nil, errNoProfile
	}
	return value, nil
}

// CheckFieldName refuses names that are no profile fields. Errors: M_INVALID_PARAM, M_KEY_TOO_LARGE.
// Spec: client-server API, PUT /profile/{userId}/{keyName}; appendices, "Common Namespaced Identifier Grammar".
func CheckFieldName(name string) error {
	if len(name) > maxIdentifier {
		return mxerr.New(http.StatusBadRequest, "M_KEY_TOO_LARGE", fmt.Sprintf("the name of a profile field may have at most %d bytes", maxIdentifier))
	}
	if name == fieldDisplayName || name == fieldAvatarURL {
		return nil
	}
	first, namespaced := true, false
	for _, c := range []byte(name) {
		letter := c >= 'a' && c <= 'z'
		switch {
		case first && !letter:
			return errFieldName
		case letter, c >= '0' && c <= '9', c == '_', c == '-':
		case c == '.':
			namespaced = true
		default:
			return errFieldName
		}
		first = false
	}
	if !namespaced || strings.HasSuffix(name, ".") || strings.Contains(name, "..") {
		return errFieldName
	}
	return nil
}

var errFieldName = mxerr.InvalidParam("a profile field is displayname, avatar_url or a name like com.example.field of a to z, digits, - and _")

// Set stores a field. value is JSON; for the display name and the avatar an empty string removes it. Errors: those of
// CheckFieldName, M_BAD_JSON, M_INVALID_PARAM, M_PROFILE_TOO_LARGE.
func (p *Profiles) Set(ctx context.Context, user id.UserID, name string, value jsontext.Value) error {
	if err := CheckFieldName(name); err != nil {
		return err
	}
	value = value.Clone()
	if err := value.Compact(); err != nil {
		return mxerr.BadJSON("the field's value is not valid JSON")
	}
	switch name {
	case fieldDisplayName, fieldAvatarURL, fieldTimeZone:
		var s string
		if value.Kind() != '"' || json.Unmarshal(value, &s) != nil {
			return mxerr.BadJSON("'" + name + "' must be a string")
		}
		if err := checkFieldText(name, s); err != nil {
			return err
		}
		return p.change(ctx, user, func(profile *Profile) {
			switch name {
			case fieldDisplayName:
				profile.DisplayName = s
			case fieldAvatarURL:
				profile.AvatarURL = s
			default:
				profile.setField(name, value)
			}
		})
	}
	return p.change(ctx, user, func(profile *Profile) { profile.setField(name, value) })
}

func checkFieldText(name, s string) error {
	switch name {
	case fieldDisplayName:
		if utf8.RuneCountInString(s) > maxDisplayName {
			return mxerr.InvalidParam(fmt.Sprintf("'displayname' may have at most %d characters", maxDisplayName))
		}
	case fieldAvatarURL:
		server, media, ok := strings.Cut(strings.TrimPrefix(s, "mxc://"), "/")
		if s != "" && (!strings.HasPrefix(s, "mxc://") || !ok || server == "" || media == "" || len(s) > maxAvatarURL) {
			return mxerr.InvalidParam("'avatar_url' must be an mxc:// URI")
		}
	}
	if strings.IndexByte(s, 0) >= 0 {
		return mxerr.InvalidParam("'" + name + "' must not have the character U+0000")
	}
	return nil
}

func (p *Profile) setField(name string, value jsontext.Value) {
	if p.Fields == nil {
		p.Fields = map[string]jsontext.Value{}
	}
	p.Fields[name] = value
}

// SetAll stores several fields at once; an empty value removes a field. All of them are text. It tells which fields it
// changed, by name. Errors: those of Set.
func (p *Profiles) SetAll(ctx context.Context, user id.UserID, fields map[string]string) ([]string, error) {
	for name, s := range fields {
		if err := CheckFieldName(name); err != nil {
			return nil, err
		}
		if err := checkFieldText(name, s); err != nil {
			return nil, err
		}
	}
	var changed []string
	err := p.change(ctx, user, func(profile *Profile) {
		changed = nil
		now := profile.All()
		for name, s := range fields {
			if old, ok := now[name]; ok == (s != "") && (!ok || string(old) == string(quote(s))) {
				continue
			}
			changed = append(changed, name)
			switch {
			case name == fieldDisplayName:
				profile.DisplayName = s
			case name == fieldAvatarURL:
				profile.AvatarURL = s
			case s == "":
				delete(profile.Fields, name)
			default:
				profile.setField(name, quote(s))
			}
		}
	})
	slices.Sort(changed)
	return changed, err
}

// Delete removes a field; one that is not there is fine. Errors: those of CheckFieldName.
func (p *Profiles) Delete(ctx context.Context, user id.UserID, name string) error {
	if err := CheckFieldName(name); err != nil {
		return err
	}
	return p.change(ctx, user, func(profile *Profile) {
		switch name {
		case fieldDisplayName:
			profile.DisplayName = ""
		case fieldAvatarURL:
			profile.AvatarURL = ""
		default:
			delete(profile.Fields, name)
		}
	})
}

// change alters a profile and brings a new name and avatar into the user's rooms.
func (p *Profiles) change(ctx context.Context, user id.UserID, fn func(*Profile)) error {
	var now Profile
	var inRooms bool
	err := p.Store.Write(ctx, func(tx *store.Tx) error {
		inRooms = false
		if _, found, err := tx.LockUser(user); err != nil {
			return err
		} else if !found {
			return errNoProfile
		}
		stored, err := tx.Profile(user)
		if err != nil {
			return err
		}
		if now, err = newProfile(stored); err != nil {
			return err
		}
		oldName, oldAvatar := now.DisplayName, now.AvatarURL
		fn(&now)
		all, err := json.Marshal(now.All())
		if err != nil {
			return fmt.Errorf("build the profile of %s: %w", user, err)
		}
		// A profile that is over the limit already may still shrink.
		if len(all) > maxProfile {
			return mxerr.New(http.StatusBadRequest, "M_PROFILE_TOO_LARGE", fmt.Sprintf("a profile may have at most %d bytes", maxProfile))
		}
		next, err := now.stored(user)
		if err != nil {
			return err
		}
		inRooms = oldName != now.DisplayName || oldAvatar != now.AvatarURL
		return tx.SetProfile(next)
	})
	if err != nil || !inRooms || p.Propagate == nil {
		return err
	}
	// The rooms are told although the client may have gone: the profile is stored.
	return p.Propagate(context.WithoutCancel(ctx), user, now.DisplayName, now.AvatarURL)
}

func (p *Profile) stored(user id.UserID) (store.Profile, error) {
	out := store.Profile{User: user, Folded: Fold(p.DisplayName), Latin: latin(p.DisplayName)}
	if p.DisplayName != "" {
		out.DisplayName = &p.DisplayName
	}
	if p.AvatarURL != "" {
		out.AvatarURL = &p.AvatarURL
	}
	if len(p.Fields) > 0 {
		fields, err := json.Marshal(p.Fields, json.Deterministic(true))
		if err != nil {
			return out, fmt.Errorf("build the profile of %s: %w", user, err)
		}
		out.Fields = fields
	}
	return out, nil
}

// Of reads the display names and avatars of some users; those who have neither are missing.
func (p *Profiles) Of(ctx context.Context, users []id.UserID) (map[id.UserID]Profile, error) {
	names := make([]string, len(users))
	for i, u := range users {
		names[i] = string(u)
	}
	out := make(map[id.UserID]Profile, len(users))
	err := p.Store.Read(ctx, func(tx *store.Tx) error {
		stored, err := tx.Profiles(names)
		for user, s := range stored {
			profile, err := newProfile(s)
			if err != nil {
				return err
			}
			out[user] = profile
		}
		return err
	})
	return out, err
}

// Fold brings text into the form in which names are compared: compatibility characters and letter case make no
// difference (Unicode NFKC and full case folding).
func Fold(s string) string {
	return norm.NFKC.String(cases.Fold().String(norm.NFKC.String(s)))
}
