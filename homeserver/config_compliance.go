package homeserver

import (
	"regexp"
	"slices"
	"time"

	"github.com/moothall/moothall/compliance/roomclass"
	"github.com/moothall/moothall/homeserver/account"
)

// Compliance is about the archive, its officers, and encryption.
type Compliance struct {
	Archive      bool        `yaml:"archive"`
	Notice       bool        `yaml:"notice"`
	SecondFactor bool        `yaml:"second_factor"`
	SignInAge    Duration    `yaml:"sign_in_age"`
	RoomClasses  RoomClasses `yaml:"room_classes"`
}

// RoomClasses says which rooms there are and which of them may be encrypted.
type RoomClasses struct {
	Corporate    RoomClass `yaml:"corporate"`
	Confidential RoomClass `yaml:"confidential"`
	Private      RoomClass `yaml:"private"`
	External     RoomClass `yaml:"external"`
}

// RoomClass is one class of rooms.
type RoomClass struct {
	Encryption string     `yaml:"encryption"` // allowed or forbidden
	Rules      []RoomRule `yaml:"rules"`
}

// RoomRule puts rooms into a class for which all holds that it says.
type RoomRule struct {
	CreatorRole string `yaml:"creator_role"`
	Preset      string `yaml:"preset"`
	Name        string `yaml:"name"`
	Alias       string `yaml:"alias"`
}

func defaultCompliance() Compliance {
	allowed := RoomClass{Encryption: "allowed"}
	return Compliance{
		Notice: true, SecondFactor: true, SignInAge: Duration(12 * time.Hour),
		RoomClasses: RoomClasses{Corporate: allowed, Confidential: allowed, Private: allowed, External: allowed},
	}
}

// namedClass is a class of the configuration with its name.
type namedClass struct {
	name roomclass.Class
	*RoomClass
}

// list gives the special classes first: their rules decide before those of corporate.
func (r *RoomClasses) list() []namedClass {
	return []namedClass{
		{roomclass.Confidential, &r.Confidential}, {roomclass.External, &r.External}, {roomclass.Private, &r.Private}, {roomclass.Corporate, &r.Corporate},
	}
}

func (c *Config) checkCompliance(d *configReader) error {
	if age := c.Compliance.SignInAge.Std(); age != 0 && age < 5*minute {
		return d.complain("compliance.sign_in_age", "must be 0 (for ever) or at least \"5m\"")
	}
	for _, class := range c.Compliance.RoomClasses.list() {
		path := "compliance.room_classes." + string(class.name)
		switch class.Encryption {
		case "", "allowed", "forbidden":
		default:
			return d.complain(path+".encryption", "is %q; it must be allowed or forbidden", class.Encryption)
		}
		for i, r := range class.Rules {
			at := index(path+".rules", i)
			if r == (RoomRule{}) {
				return d.complain(at, "says nothing; give creator_role, preset, name or alias")
			}
			if r.CreatorRole != "" && !slices.Contains(account.AllRoles(), account.Role(r.CreatorRole)) {
				return d.complain(at+".creator_role", "is %q; it must be one of %v", r.CreatorRole, account.AllRoles())
			}
			switch r.Preset {
			case "", "private_chat", "public_chat", "trusted_private_chat":
			default:
				return d.complain(at+".preset", "is %q; it must be private_chat, public_chat or trusted_private_chat", r.Preset)
			}
			for _, x := range []struct{ key, value string }{{"name", r.Name}, {"alias", r.Alias}} {
				if _, err := regexp.Compile(x.value); err != nil {
					return d.complain(at+"."+x.key, "is no regular expression: %v", err)
				}
			}
		}
	}
	return nil
}

// roomClassConfig is the policy about encryption; the configuration was checked.
func (c *Config) roomClassConfig() (roomclass.Config, error) {
	var out roomclass.Config
	for _, class := range c.Compliance.RoomClasses.list() {
		if class.Encryption == "forbidden" {
			out.Forbidden = append(out.Forbidden, class.name)
		}
		for _, r := range class.Rules {
			rule := roomclass.Rule{Class: class.name, CreatorRole: account.Role(r.CreatorRole), Preset: r.Preset}
			var err error
			if r.Name != "" {
				if rule.Name, err = regexp.Compile(r.Name); err != nil {
					return out, err
				}
			}
			if r.Alias != "" {
				if rule.Alias, err = regexp.Compile(r.Alias); err != nil {
					return out, err
				}
			}
			out.Rules = append(out.Rules, rule)
		}
	}
	return out, nil
}
