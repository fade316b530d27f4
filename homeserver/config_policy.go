package homeserver

import (
	"net/url"

	"github.com/moothall/moothall/homeserver/federation"
	"github.com/moothall/moothall/homeserver/push"
)

// RoomPolicy says where a policy server is reached that is not to be looked for.
type RoomPolicy struct {
	ServerName string `yaml:"server_name"`
	URL        string `yaml:"url"`
}

// checkPolicyServers looks at the section policy_servers.
func (c *Config) checkPolicyServers(d *configReader) error {
	seen := map[string]bool{}
	for i, p := range c.Policy {
		at := index("policy_servers", i)
		u, err := url.Parse(p.URL)
		switch {
		case p.ServerName == "" || seen[p.ServerName]:
			return d.complain(at+".server_name", "must be the server name of a policy server, each once")
		case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
			return d.complain(at+".url", "is %q; it must be like https://policy.example.org", p.URL)
		}
		seen[p.ServerName] = true
	}
	return nil
}

// newFederation makes the client for requests to other servers.
func (s *Server) newFederation() (*federation.Client, error) {
	outside, err := s.cfg.outsideClient()
	if err != nil {
		return nil, err
	}
	client, err := push.NewClient(outside)
	if err != nil {
		return nil, err
	}
	trusted, err := s.cfg.operatorClient()
	if err != nil {
		return nil, err
	}
	servers := map[string]string{}
	for _, p := range s.cfg.Policy {
		servers[p.ServerName] = p.URL
	}
	return federation.New(federation.Deps{
		ServerName: s.cfg.ServerName, Key: s.key, Logger: s.log, Client: client, Trusted: trusted, DialAt: push.DialAt, Servers: servers,
	}), nil
}
