package hooks

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// How a hook knows who posts.
const (
	AuthToken = "token" // the secret is shown: bearer, in the path, or as robots do
	AuthHMAC  = "hmac"  // requests are signed with it
)

// Options is how one hook behaves beyond where to and what in.
type Options struct {
	Template    string   `json:"template,omitzero"`    // makes Markdown of the body
	Key         string   `json:"key,omitzero"`         // template of the key by which a message is changed later
	Thread      string   `json:"thread,omitzero"`      // template of the key of a thread
	Idempotency string   `json:"idempotency,omitzero"` // template of the idempotency key
	Mentions    string   `json:"mentions,omitzero"`    // template: users, apart by spaces or commas
	MsgType     string   `json:"msgtype,omitzero"`     // m.text or m.notice; "": m.text
	Addresses   []string `json:"addresses,omitzero"`   // from where it may be used; none: from anywhere
	PerMinute   int      `json:"per_minute,omitzero"`  // posts; 0: as configured
}

// NewHook is a hook to be made.
type NewHook struct {
	Name        string `json:"name"`
	Format      string `json:"format"`
	Auth        string `json:"auth"`
	Secret      string `json:"secret"` // one that posts come with today; "" makes one
	Target      string `json:"target"` // room id, alias or user id
	DisplayName string `json:"display_name"`
	AvatarURL   string `json:"avatar_url"` // mxc://
	Options
}

// Made is a new hook with its secret, which is shown this once.
type Made struct {
	Name   string `json:"name"`
	Secret string `json:"secret"`
	URL    string `json:"url"`
}

var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

const minSecret = 16 // characters of a secret that an administrator gives

// check completes a description and says what is wrong with it.
func (n *NewHook) check(serverName string) error {
	if n.Format == "" {
		n.Format = "generic"
	}
	if n.Auth == "" {
		n.Auth = AuthToken
	}
	if n.DisplayName == "" {
		n.DisplayName = n.Name
	}
	wrong := func(field, format string, args ...any) error {
		return mxerr.BadJSON("'"+field+"' "+fmt.Sprintf(format, args...)).With("path", "/"+field)
	}
	switch {
	case !validName.MatchString(n.Name):
		return wrong("name", "must have 1 to 64 of a-z 0-9 . _ - and begin with a letter or digit")
	case n.Name == "subscriptions":
		return wrong("name", "is taken by a part of the API")
	case formats[n.Format] == nil:
		return wrong("format", "is %q; it must be one of %s", n.Format, strings.Join(Formats(), ", "))
	case n.Auth != AuthToken && n.Auth != AuthHMAC:
		return wrong("auth", "is %q; it must be token or hmac", n.Auth)
	case n.Secret != "" && (len(n.Secret) < minSecret || len(n.Secret) > 500):
		return wrong("secret", "must have %d to 500 characters", minSecret)
	case n.Target == "":
		return wrong("target", "is missing: it names a room (!id or #alias) or a user (@name:%s)", serverName)
	case !strings.ContainsRune("!#@", rune(n.Target[0])) || len(n.Target) > 255:
		return wrong("target", "is %q; a room (!id or #alias) or a user (@name:%s) was expected", n.Target, serverName)
	case n.Target[0] == '@' && (!event.ValidUserID(id.UserID(n.Target)) || id.UserID(n.Target).Homeserver() != serverName):
		return wrong("target", "is %q, which is no user of this server", n.Target)
	case n.AvatarURL != "" && !strings.HasPrefix(n.AvatarURL, "mxc://"):
		return wrong("avatar_url", "must begin with mxc://")
	case len(n.DisplayName) > 200:
		return wrong("display_name", "may have 200 bytes at most")
	case n.MsgType != "" && n.MsgType != "m.text" && n.MsgType != "m.notice":
		return wrong("msgtype", "must be m.text or m.notice")
	case n.PerMinute < 0 || n.PerMinute > 1_000_000:
		return wrong("per_minute", "must lie between 0 and 1000000")
	}
	for field, text := range map[string]string{"template": n.Template, "key": n.Key, "thread": n.Thread, "idempotency": n.Idempotency, "mentions": n.Mentions} {
		if text == "" {
			continue
		}
		if _, err := parseTemplate(text); err != nil || len(text) > 20_000 {
			return wrong(field, "is no template: %v", err)
		}
	}
	if _, err := prefixes(n.Addresses); err != nil {
		return wrong("addresses", "%v", err)
	}
	return nil
}

// prefixes reads addresses and networks.
func prefixes(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a, err := netip.ParseAddr(s)
			if err != nil {
				return nil, fmt.Errorf("hold %q, which is neither an address nor a network such as 10.1.0.0/16", s)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		out = append(out, p)
	}
	return out, nil
}

func hash(s string) []byte {
	sum := sha256.Sum256([]byte(s))
	return sum[:]
}

// newSecret makes 256 random bits. Those of signatures have the form of Standard Webhooks.
func newSecret(auth string) string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	if auth == AuthHMAC {
		return "whsec_" + base64.StdEncoding.EncodeToString(b[:])
	}
	return "mhhk_" + base64.RawURLEncoding.EncodeToString(b[:])
}

// Create makes a hook. creator is "" from the command line.
func Create(ctx context.Context, s *store.Store, serverName, publicURL string, n NewHook, creator id.UserID, now int64) (Made, error) {
	if err := n.check(serverName); err != nil {
		return Made{}, err
	}
	if n.Secret == "" {
		n.Secret = newSecret(n.Auth)
	}
	options, err := json.Marshal(n.Options)
	if err != nil {
		return Made{}, err
	}
	h := store.Hook{
		ID: n.Name, Format: n.Format, Auth: n.Auth, Target: n.Target, Creator: creator, DisplayName: n.DisplayName,
		AvatarURL: n.AvatarURL, Options: options, Created: now,
	}
	if n.Auth == AuthToken {
		h.SecretHash = hash(n.Secret)
	} else {
		h.Secret = store.Content(n.Secret)
	}
	err = s.Write(ctx, func(tx *store.Tx) error {
		made, err := tx.PutHook(h)
		if err != nil {
			return err
		}
		if !made {
			return mxerr.New(409, "M_UNKNOWN", fmt.Sprintf("there is a hook %q already; revoke it first or choose another name", n.Name))
		}
		return audit.Append(ctx, tx, audit.Entry{Action: "hook.created", Target: n.Name, Details: map[string]any{"format": n.Format, "auth": n.Auth, "target": n.Target}})
	})
	return Made{Name: n.Name, Secret: n.Secret, URL: strings.TrimSuffix(publicURL, "/") + base + n.Name}, err
}

// Revoke ends a hook; false means that there is none.
func Revoke(ctx context.Context, s *store.Store, name string, now int64) (bool, error) {
	found := false
	err := s.Write(ctx, func(tx *store.Tx) error {
		var err error
		if found, err = tx.RevokeHook(name, now); err != nil || !found {
			return err
		}
		return audit.Append(ctx, tx, audit.Entry{Action: "hook.revoked", Target: name})
	})
	return found, err
}

// TestToken makes a token with which anyone posts to a hook for a minute; "" means that there is no such hook.
func TestToken(ctx context.Context, s *store.Store, name string, now int64) (string, error) {
	token, found := newSecret(AuthToken), false
	err := s.Write(ctx, func(tx *store.Tx) error {
		var err error
		if found, err = tx.SetHookTest(name, hash(token), now+60_000); err != nil || !found {
			return err
		}
		return audit.Append(ctx, tx, audit.Entry{Action: "hook.tested", Target: name})
	})
	if !found {
		token = ""
	}
	return token, err
}

// Formats lists the forms of posts that are understood.
func Formats() []string {
	var out []string
	for name := range formats {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}
