package homeserver

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/ldapsync"
)

// newDirectory builds what follows the company's directories.
func (s *Server) newDirectory() (*ldapsync.Sync, error) {
	configs, err := s.cfg.DirectoryConfigs()
	if err != nil {
		return nil, err
	}
	return ldapsync.New(ldapsync.Deps{
		Store: s.store, Accounts: s.accounts, People: s.people, Groups: s.groups, Audit: s.accounts.Audit, Logger: s.log,
	}, configs)
}

// directoryPassword is account.Deps.Directory.
func (s *Server) directoryPassword(ctx context.Context, name string, u *account.User, password string) (id.UserID, bool, error) {
	if len(s.cfg.Directories) == 0 {
		return "", false, nil
	}
	return s.directory.CheckPassword(ctx, name, u, password)
}

// passwordElsewhere is account.Deps.PasswordElsewhere.
func (s *Server) passwordElsewhere(ctx context.Context, user id.UserID) (bool, error) {
	return s.directory.PasswordElsewhere(ctx, user)
}

// DirectoryConfigs is the directories' part.
func (c *Config) DirectoryConfigs() ([]ldapsync.Config, error) {
	out := make([]ldapsync.Config, 0, len(c.Directories))
	for i := range c.Directories {
		d, err := c.Directories[i].config()
		if err != nil {
			return nil, fmt.Errorf("%s.%w", index("directories", i), err)
		}
		out = append(out, d)
	}
	return out, nil
}

// config gives package ldapsync its form. Errors are *ldapsync.ConfigError values.
func (d *Directory) config() (ldapsync.Config, error) {
	u, a := &d.Users, &d.Users.Attributes
	out := ldapsync.Config{
		ID: d.ID, Type: d.Type, Servers: d.Servers, StartTLS: d.StartTLS, BindDN: d.BindDN, BindPassword: string(d.BindPassword), Timeout: d.Timeout.Std(),
		Users: ldapsync.Users{
			Base: u.Base, Filter: u.Filter, Localpart: u.Localpart, ID: u.ID, Login: u.Login, DirectBind: u.DirectBind,
			SignIn: u.Passwords != passwordsServer, LinkExisting: u.LinkExisting, MaxPhoto: int(u.MaxPhoto), Disabled: u.Disabled,
			Attributes: ldapsync.Attributes{
				DisplayName: a.DisplayName, Email: a.Email, Phone: a.Phone, Title: a.Title, Department: a.Department, Manager: a.Manager,
				EmployeeNumber: a.EmployeeNumber, Photo: a.Photo, TimeZone: a.TimeZone,
			},
		},
		Groups: ldapsync.Groups(d.Groups),
		Units:  ldapsync.Units(d.Units),
		Sync: ldapsync.SyncConfig{
			Enabled: d.Sync.Mode != syncOff, Mode: d.Sync.Mode, Interval: d.Sync.Interval.Std(), Reconcile: d.Sync.Reconcile.Std(),
			PageSize: d.Sync.PageSize, Workers: d.Sync.Workers,
		},
		Safety: ldapsync.Safety(d.Safety),
	}
	if d.Sync.Mode == syncOff {
		out.Sync.Mode = ""
	}
	if d.CAFile == "" {
		return out, nil
	}
	pem, err := os.ReadFile(d.CAFile)
	if err != nil {
		return out, &ldapsync.ConfigError{Key: "ca_file", Err: fmt.Errorf("cannot be read: %w", err)}
	}
	out.RootCAs, err = x509.SystemCertPool()
	if err != nil {
		out.RootCAs = x509.NewCertPool()
	}
	if !out.RootCAs.AppendCertsFromPEM(pem) {
		return out, &ldapsync.ConfigError{Key: "ca_file", Err: errors.New("holds no certificate in PEM form")}
	}
	return out, nil
}

// checkDirectories finds the first value that cannot be.
func (c *Config) checkDirectories(d *configReader) error {
	seen := map[string]bool{}
	for i := range c.Directories {
		path := index("directories", i)
		cfg, err := c.Directories[i].config()
		if err == nil {
			err = cfg.Check()
		}
		var fault *ldapsync.ConfigError
		if errors.As(err, &fault) {
			return d.complain(path+"."+fault.Key, "%v", fault.Err)
		}
		if err != nil {
			return err
		}
		if seen[cfg.ID] {
			return d.complain(path+".id", "is %q, which is another directory's too", cfg.ID)
		}
		seen[cfg.ID] = true
		if p := c.Directories[i].Users.Passwords; p != "" && p != passwordsServer && p != passwordsDirectory {
			return d.complain(path+".users.passwords", "is %q; it must be directory or server", p)
		}
		if cfg.Plain() {
			c.Warnings = append(c.Warnings, path+": ldap:// without start_tls: passwords travel unencrypted")
		}
	}
	return nil
}
