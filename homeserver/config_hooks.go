package homeserver

import (
	"fmt"
	"net/netip"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/appservices/hooks"
	"github.com/moothall/moothall/homeserver/mxerr"
)

// Hooks is about the addresses that systems post messages to, and those that events go out to.
type Hooks struct {
	BotPrefix         string   `yaml:"bot_prefix"`
	PerMinute         int      `yaml:"per_minute"`
	MaxAttachmentSize Size     `yaml:"max_attachment_size"`
	GiveUpAfter       Duration `yaml:"give_up_after"`
	AllowNetworks     []string `yaml:"allow_networks"`

	Subscriptions []HookSubscription `yaml:"subscriptions"`
}

// HookSubscription is an endpoint that events go out to.
type HookSubscription struct {
	Name       string   `yaml:"name"`
	URL        string   `yaml:"url"`
	Secret     Secret   `yaml:"secret"`
	SecretFile string   `yaml:"secret_file"`
	Rooms      []string `yaml:"rooms"`
	Types      []string `yaml:"types"`
	Senders    []string `yaml:"senders"`
	NotSenders []string `yaml:"not_senders"`
}

// subscriptions are those of the configuration.
func (h *Hooks) subscriptions() (out []hooks.NewSubscription) {
	for _, s := range h.Subscriptions {
		n := hooks.NewSubscription{Name: s.Name, URL: s.URL, Secret: string(s.Secret)}
		n.Types = s.Types
		for _, r := range s.Rooms {
			n.Rooms = append(n.Rooms, id.RoomID(r))
		}
		for _, u := range s.Senders {
			n.Senders = append(n.Senders, id.UserID(u))
		}
		for _, u := range s.NotSenders {
			n.NotSenders = append(n.NotSenders, id.UserID(u))
		}
		out = append(out, n)
	}
	return out
}

func defaultHooks() Hooks {
	return Hooks{BotPrefix: "hook-", PerMinute: 600, MaxAttachmentSize: 8 << 20, GiveUpAfter: Duration(3 * day)}
}

// HooksConfig is the part of package hooks.
func (c *Config) HooksConfig() hooks.Config {
	return hooks.Config{
		BotPrefix: c.Hooks.BotPrefix, PerMinute: c.Hooks.PerMinute, MaxAttachment: int64(c.Hooks.MaxAttachmentSize), GiveUp: c.Hooks.GiveUpAfter.Std(),
		Subscriptions: c.Hooks.subscriptions(),
	}
}

// hookNetworks are the private networks that attachments come from and events go to.
func (c *Config) hookNetworks() ([]netip.Prefix, error) {
	return Listen{TrustedProxies: c.Hooks.AllowNetworks}.proxies()
}

func (c *Config) checkHooks(d *configReader) error {
	switch {
	case c.Hooks.BotPrefix == "" || len(c.Hooks.BotPrefix) > 50:
		return d.complain("hooks.bot_prefix", "is %q; it must have 1 to 50 characters, such as hook-", c.Hooks.BotPrefix)
	case c.Hooks.PerMinute < 1:
		return d.complain("hooks.per_minute", "is %d; it must be 1 at least", c.Hooks.PerMinute)
	case c.Hooks.MaxAttachmentSize < 0 || c.Hooks.MaxAttachmentSize > 100<<20:
		return d.complain("hooks.max_attachment_size", "must lie between 0 and 100 MiB")
	case c.Hooks.GiveUpAfter.Std() < 0:
		return d.complain("hooks.give_up_after", "must not be negative")
	}
	for _, r := range c.Hooks.BotPrefix {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '.' && r != '_' && r != '-' {
			return d.complain("hooks.bot_prefix", "is %q; it may have a-z 0-9 . _ -", c.Hooks.BotPrefix)
		}
	}
	if _, err := c.hookNetworks(); err != nil {
		return d.complain("hooks.allow_networks", "%v", err)
	}
	seen := map[string]bool{}
	for i, n := range c.Hooks.subscriptions() {
		path := index("hooks.subscriptions", i)
		if seen[n.Name] {
			return d.complain(path+".name", "is %q; another subscription has that name", n.Name)
		}
		seen[n.Name] = true
		if e := mxerr.As(n.Check()); e != nil {
			field, _, _ := strings.Cut(strings.TrimPrefix(fmt.Sprint(e.Extra["path"]), "/"), "/")
			return d.complain(path+"."+field, "is wrong: %s", e.Message)
		}
	}
	return nil
}
