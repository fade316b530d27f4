package homeserver

import (
	"errors"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/groups"
)

// Groups says which groups of the company have which rooms and spaces.
type Groups struct {
	ServiceAccount     string       `yaml:"service_account"`
	ServiceName        string       `yaml:"service_name"`
	AdditionalCreators []string     `yaml:"additional_creators"`
	Spaces             []GroupSpace `yaml:"spaces"`
	Rules              []GroupRule  `yaml:"rules"`
}

// GroupSpace is a space that stands for no group.
type GroupSpace struct {
	ID     string `yaml:"id"`
	Name   string `yaml:"name"`
	Topic  string `yaml:"topic"`
	Alias  string `yaml:"alias"`
	Parent string `yaml:"parent"`
}

// GroupRule gives some groups a room or space.
type GroupRule struct {
	ID         string   `yaml:"id"`
	Source     string   `yaml:"source"`
	Kind       string   `yaml:"kind"`
	Group      string   `yaml:"group"`
	NameRegexp string   `yaml:"name_regexp"`
	DN         string   `yaml:"dn"`
	Make       string   `yaml:"make"`
	Shared     bool     `yaml:"shared"`
	SharedWith string   `yaml:"shared_with"`
	RoomName   string   `yaml:"room_name"`
	Topic      string   `yaml:"topic"`
	Alias      string   `yaml:"alias"`
	Parent     string   `yaml:"parent"`
	Root       string   `yaml:"root"`
	PowerLevel int      `yaml:"power_level"`
	Join       string   `yaml:"join"`
	KeepExtra  bool     `yaml:"keep_extra"`
	Allow      []string `yaml:"allow"`
	Encrypted  bool     `yaml:"encrypted"`
	History    string   `yaml:"history"`
	Direct     bool     `yaml:"direct_members_only"`
}

// defaultServiceAccount makes the rooms of groups and writes to people in the company's name.
const defaultServiceAccount = "moothall"

// GroupsConfig is the part of package groups.
func (c *Config) GroupsConfig() groups.Config {
	out := groups.Config{ServiceAccount: c.Groups.ServiceAccount, ServiceName: c.Groups.ServiceName}
	for _, u := range c.Groups.AdditionalCreators {
		out.AdditionalCreators = append(out.AdditionalCreators, id.UserID(u))
	}
	for _, s := range c.Groups.Spaces {
		out.Spaces = append(out.Spaces, groups.Space(s))
	}
	for _, r := range c.Groups.Rules {
		out.Rules = append(out.Rules, groups.Rule{
			ID: r.ID, Source: r.Source, Kind: r.Kind, Group: r.Group, NameRegexp: r.NameRegexp, DN: r.DN, Make: r.Make, Shared: r.Shared,
			SharedWith: r.SharedWith, RoomName: r.RoomName, Topic: r.Topic, Alias: r.Alias, Parent: r.Parent, Root: r.Root,
			PowerLevel: int64(r.PowerLevel), Join: r.Join, KeepExtra: r.KeepExtra, Allow: r.Allow, Encrypted: r.Encrypted,
			History: r.History, Direct: r.Direct,
		})
	}
	return out
}

func (c *Config) checkGroups(d *configReader) error {
	config := c.GroupsConfig()
	if path, err := config.Check(); err != nil {
		return d.complain("groups."+path, "%v", err)
	}
	return nil
}

// groupsFault words an error of groups.New, which checked configurations do not have.
func groupsFault(err error) error {
	var fault *groups.ConfigError
	if errors.As(err, &fault) {
		return errors.New("configuration: " + fault.Error())
	}
	return err
}
