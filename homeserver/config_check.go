package homeserver

import (
	"errors"
	"net"
	"net/mail"
	"strconv"
	"strings"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/event"
)

// check finds the first value that cannot be.
func (c *Config) check(d *configReader) error {
	for _, part := range []func(*configReader) error{
		c.checkNames, c.checkListen, c.checkDatabase, c.checkAccounts, c.checkAudit, c.checkEmail, c.checkSSO, c.checkFactors, c.checkProviders, c.checkRateLimits, c.checkOutside, c.checkRTC, c.checkPolicyServers, c.checkGroups, c.checkHR, c.checkHooks, c.checkOA, c.checkAppServices, c.checkSearch, c.checkCompliance, c.checkLog, c.checkDirectories,
	} {
		if err := part(d); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) checkNames(d *configReader) error {
	if !event.ValidServerName(c.ServerName) {
		return d.complain("server_name", "is %q; it must be a domain such as example.org (what stands behind the colon of user ids)", c.ServerName)
	}
	if strings.ToLower(c.ServerName) != c.ServerName {
		return d.complain("server_name", "is %q; it must be in small letters", c.ServerName)
	}
	if !isHTTP(c.PublicURL) {
		return d.complain("public_url", "is %q; it must be an address such as https://matrix.example.org", c.PublicURL)
	}
	if c.DataDir == "" {
		return d.complain("data_dir", "is empty; it must name a directory")
	}
	return nil
}

func (c *Config) checkListen(d *configReader) error {
	seen, client := map[string]bool{}, false
	for i, l := range c.Listen {
		path := index("listen", i)
		if err := checkAddress(l.Address); err != nil {
			return d.complain(path+".address", "is %q; %v", l.Address, err)
		}
		if seen[l.Address] && !strings.HasSuffix(l.Address, ":0") {
			return d.complain(path+".address", "is %q, which is listed twice", l.Address)
		}
		seen[l.Address] = true
		if (l.TLS.Certificate == "") != (l.TLS.Key == "") {
			return d.complain(path+".tls.certificate", "and %s.tls.key belong together; one of them is missing", path)
		}
		for _, what := range l.Serve {
			if what != ServeClient && what != ServeMetrics {
				return d.complain(path+".serve", "has %q; it must be a list of: client, metrics", what)
			}
		}
		client = client || l.serves(ServeClient)
		if _, err := l.proxies(); err != nil {
			return d.complain(path+".trusted_proxies", "%v", err)
		}
	}
	if !client {
		return d.complain("listen", "has no address that serves client")
	}
	if c.Metrics.Address != "" {
		if err := checkAddress(c.Metrics.Address); err != nil {
			return d.complain("metrics.address", "is %q; %v", c.Metrics.Address, err)
		}
	}
	return nil
}

func checkAddress(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return errors.New("it must be host:port, such as 127.0.0.1:8008 or :8448")
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return errors.New("the port must be a number from 0 to 65535")
	}
	return nil
}

func (c *Config) checkDatabase(d *configReader) error {
	for path, url := range map[string]Secret{"database.url": c.Database.URL, "database.listen_url": c.Database.ListenURL} {
		if url != "" && !strings.HasPrefix(string(url), "postgres://") && !strings.HasPrefix(string(url), "postgresql://") {
			return d.complain(path, "must be empty or like postgres://user:password@host/database")
		}
	}
	if n := c.Database.MaxConnections; n < 2 || n > 1000 {
		return d.complain("database.max_connections", "is %d; it must be from 2 to 1000", n)
	}
	return nil
}

func (c *Config) checkAccounts(d *configReader) error {
	switch c.Registration.Mode {
	case account.RegistrationClosed, account.RegistrationToken, account.RegistrationOpen:
	default:
		return d.complain("registration.mode", "is %q; it must be closed, token or open", c.Registration.Mode)
	}
	if n := c.Passwords.MinLength; n < 1 || n > 128 {
		return d.complain("passwords.min_length", "is %d; it must be from 1 to 128", n)
	}
	a := c.Passwords.Argon2
	if a.Iterations < 1 || a.Iterations > 100 {
		return d.complain("passwords.argon2.iterations", "is %d; it must be from 1 to 100", a.Iterations)
	}
	if a.Parallelism < 1 || a.Parallelism > 64 {
		return d.complain("passwords.argon2.parallelism", "is %d; it must be from 1 to 64", a.Parallelism)
	}
	if a.Memory < 1<<20 || a.Memory > 4<<30 {
		return d.complain("passwords.argon2.memory", "must be from \"1 MiB\" to \"4 GiB\"")
	}
	if t := c.Sessions.AccessTokenLifetime; t.Std() < minute || t.Std() > 365*day {
		return d.complain("sessions.access_token_lifetime", "must be from \"1m\" to \"365d\"")
	}
	return nil
}

func (c *Config) checkEmail(d *configReader) error {
	e := &c.Email
	if e.Server == "" {
		if c.Registration.RequireEmail {
			return d.complain("registration.require_email", "needs email.server, by which the addresses are confirmed")
		}
		return nil
	}
	if host, _, err := net.SplitHostPort(e.Server); err != nil || host == "" {
		return d.complain("email.server", "is %q; it must be host:port, such as smtp.example.org:587", e.Server)
	}
	if err := checkAddress(e.Server); err != nil {
		return d.complain("email.server", "is %q; %v", e.Server, err)
	}
	if e.TLS != "starttls" && e.TLS != "implicit" && e.TLS != "none" {
		return d.complain("email.tls", "is %q; it must be starttls, implicit or none", e.TLS)
	}
	if (e.Username == "") != (e.Password == "") {
		return d.complain("email.username", "and email.password belong together; one of them is missing")
	}
	if _, err := mail.ParseAddress(e.From); err != nil {
		return d.complain("email.from", "is %q; it must be an address such as Moothall <noreply@example.org>", e.From)
	}
	return nil
}

func (c *Config) checkRateLimits(d *configReader) error {
	r := &c.RateLimits
	for _, l := range []struct {
		name string
		RateLimit
	}{
		{"read", r.Read}, {"send", r.Send}, {"create", r.Create}, {"join", r.Join}, {"invite", r.Invite}, {"login", r.Login},
		{"register", r.Register}, {"media", r.Media}, {"user_directory", r.UserDirectory},
	} {
		path := "rate_limits." + l.name
		if l.PerSecond < 0 || l.PerSecond > 1e6 {
			return d.complain(path+".per_second", "is %g; it must be from 0 (no limit) to 1000000", l.PerSecond)
		}
		if l.Burst < 1 || l.Burst > 1e6 {
			return d.complain(path+".burst", "is %d; it must be from 1 to 1000000", l.Burst)
		}
	}
	return nil
}

// checkOutside looks at media, TURN, support and outgoing requests.
func (c *Config) checkOutside(d *configReader) error {
	if c.Media.MaxUploadSize < 1 {
		return d.complain("media.max_upload_size", "must be larger than 0")
	}
	if c.Media.ImageMemory < 16<<20 {
		return d.complain("media.image_memory", "must be at least \"16 MiB\"")
	}
	// Clients show what they fetched a day ago without asking, and the last use is noted twice a day.
	if keep := c.Media.Retention.Local; keep != 0 && keep.Std() < 2*day {
		return d.complain("media.retention.local", "must be 0 (files are kept for ever) or at least \"2d\"")
	}
	for i, uri := range c.TURN.URIs {
		if !strings.HasPrefix(uri, "turn:") && !strings.HasPrefix(uri, "turns:") {
			return d.complain(index("turn.uris", i), "is %q; it must be like turn:turn.example.org?transport=udp", uri)
		}
	}
	if len(c.TURN.URIs) > 0 && c.TURN.SharedSecret == "" {
		return d.complain("turn.uris", "need turn.shared_secret, the static-auth-secret of the TURN server")
	}
	if c.Push.MailAfter.Std() <= 0 {
		return d.complain("push.mail_after", "must be longer than 0")
	}
	if t := c.TURN.TTL; t.Std() < minute {
		return d.complain("turn.ttl", "must be at least \"1m\"")
	}
	if p := c.WellKnown.SupportPage; p != "" && !isHTTP(p) {
		return d.complain("well_known.support_page", "is %q; it must be an address such as https://example.org/help", p)
	}
	if s := c.WellKnown.Server; s != "" && !event.ValidServerName(s) {
		return d.complain("well_known.server", "is %q; it must be a name with or without a port, such as matrix.example.org:443", s)
	}
	for i, contact := range c.WellKnown.Contacts {
		path := index("well_known.contacts", i)
		if contact.Role == "" {
			return d.complain(path, "has no role; it must be m.role.admin or m.role.security")
		}
		if contact.Email == "" && contact.MatrixID == "" {
			return d.complain(path, "needs an email or a matrix_id")
		}
	}
	if p := string(c.Outgoing.Proxy); p != "" && !isHTTP(p) && !strings.HasPrefix(p, "socks5://") {
		return d.complain("outgoing.proxy", "must be like http://proxy.example.org:3128")
	}
	return nil
}

func (c *Config) checkLog(d *configReader) error {
	if _, ok := logLevels[c.Log.Level]; !ok {
		return d.complain("log.level", "is %q; it must be debug, info, warn or error", c.Log.Level)
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		return d.complain("log.format", "is %q; it must be text or json", c.Log.Format)
	}
	return nil
}
