package homeserver

import (
	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/account"
)

// Accounts is about what administrators and officers may do.
type Accounts struct {
	SeparationOfDuties bool `yaml:"separation_of_duties"`
}

// Audit is about the audit log, which is always written.
type Audit struct {
	Keep   Duration `yaml:"keep"`
	Export string   `yaml:"export"`
}

// Lockout is what follows on wrong passwords.
type Lockout struct {
	Attempts        int      `yaml:"attempts"`         // -1: no limit
	AddressAttempts int      `yaml:"address_attempts"` // -1: no limit
	Delay           Duration `yaml:"delay"`
	MaxDelay        Duration `yaml:"max_delay"`
}

// refusalTime is the step to which the time of a refused password is rounded up: bcrypt as Synapse uses it takes a quarter of
// a second.
const refusalTime = minute / 150

// minIdleLimit is well above how exactly it is known when a device was seen.
const minIdleLimit = 15 * minute

func defaultAudit() Audit { return Audit{Keep: Duration(365 * day)} }

func defaultPasswords() Passwords {
	return Passwords{
		MinLength: 8, Argon2: Argon2{Memory: 19 << 20, Iterations: 2, Parallelism: 1},
		MinStrength: 1, Lockout: Lockout{Attempts: 10, AddressAttempts: 100, Delay: Duration(minute / 2), MaxDelay: Duration(60 * minute)},
	}
}

func (c *Config) checkAudit(d *configReader) error {
	if c.Audit.Keep.Std() < audit.MinKeep {
		return d.complain("audit.keep", "must be at least \"184d\": the audit log is kept for six months by law")
	}
	if err := audit.CheckExport(c.Audit.Export); err != nil {
		return d.complain("audit.export", "%v", err)
	}
	p := &c.Passwords
	if p.MinStrength < 0 || p.MinStrength > 4 {
		return d.complain("passwords.min_strength", "is %d; it must be from 0 to 4", p.MinStrength)
	}
	if p.History < 0 || p.History > 24 {
		return d.complain("passwords.history", "is %d; it must be from 0 to 24", p.History)
	}
	if p.MaxAge != 0 && p.MaxAge.Std() < day {
		return d.complain("passwords.max_age", "must be 0 (for ever) or at least \"1d\"")
	}
	l := &p.Lockout
	if l.Attempts == 0 || l.Attempts < -1 {
		return d.complain("passwords.lockout.attempts", "is %d; it must be 1 or more, or -1 for no limit", l.Attempts)
	}
	if l.AddressAttempts == 0 || l.AddressAttempts < -1 {
		return d.complain("passwords.lockout.address_attempts", "is %d; it must be 1 or more, or -1 for no limit", l.AddressAttempts)
	}
	if l.Delay.Std() < minute/60 {
		return d.complain("passwords.lockout.delay", "must be at least \"1s\"")
	}
	if l.MaxDelay.Std() < l.Delay.Std() || l.MaxDelay.Std() > 7*day {
		return d.complain("passwords.lockout.max_delay", "must be from passwords.lockout.delay to \"7d\"")
	}
	s := &c.Sessions
	if s.IdleLimit != 0 && s.IdleLimit.Std() < minIdleLimit {
		return d.complain("sessions.idle_limit", "must be 0 (for ever) or at least \"15m\"")
	}
	if s.AbsoluteLimit != 0 && s.AbsoluteLimit.Std() < minIdleLimit {
		return d.complain("sessions.absolute_limit", "must be 0 (for ever) or at least \"15m\"")
	}
	if c.Email.Language != "en" && c.Email.Language != "zh" {
		return d.complain("email.language", "is %q; it must be en or zh", c.Email.Language)
	}
	return nil
}

// AuditConfig is the audit log's part.
func (c *Config) AuditConfig() audit.Config {
	return audit.Config{Keep: c.Audit.Keep.Std(), Export: c.Audit.Export}
}

// completeAccounts adds what config.go does not.
func (c *Config) completeAccounts(out *account.Config) {
	out.SeparationOfDuties = c.Accounts.SeparationOfDuties
	p, l := &c.Passwords, &c.Passwords.Lockout
	out.Passwords.MinStrength, out.Passwords.History, out.Passwords.MaxAge = p.MinStrength, p.History, p.MaxAge.Std()
	out.Passwords.Lockout = account.Lockout{Attempts: l.Attempts, AddressAttempts: l.AddressAttempts, Delay: l.Delay.Std(), MaxDelay: l.MaxDelay.Std()}
	out.Passwords.RefusalTime, out.Passwords.BcryptPepper = refusalTime, string(p.BcryptPepper)
	out.Sessions.IdleLimit, out.Sessions.AbsoluteLimit = c.Sessions.IdleLimit.Std(), c.Sessions.AbsoluteLimit.Std()
	out.Email.Language = c.Email.Language
}
