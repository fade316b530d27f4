package account

import "time"

// Ways to register.
const (
	RegistrationClosed = "closed" // only administrators make accounts
	RegistrationToken  = "token"  // whoever has a registration token
	RegistrationOpen   = "open"   // anyone
)

// Config is how accounts behave.
type Config struct {
	Registration RegistrationConfig
	Passwords    PasswordConfig
	Sessions     SessionConfig
	Email        EmailConfig
	// SeparationOfDuties keeps the roles of system administrator, security administrator and auditor apart.
	SeparationOfDuties bool
}

// RegistrationConfig says who may make an account.
type RegistrationConfig struct {
	// Mode is closed (the default), token or open.
	Mode string
	// SharedSecret turns POST /_synapse/admin/v1/register on.
	SharedSecret string
	// Guests lets anybody have an account that may do little, without registration.
	Guests bool
}

// PasswordConfig is for passwords that this server keeps.
type PasswordConfig struct {
	// MinLength is the fewest characters of a password that a user chooses; 8 if it is 0.
	MinLength int
	// MinStrength is the least strength (zxcvbn, 0 to 4) of a password that a user chooses; 0: any.
	MinStrength int
	// History is how many of the last passwords cannot be used again; 0: all can.
	History int
	// MaxAge is how long a password may be used before it has to be changed; 0: for ever.
	MaxAge  time.Duration
	Lockout Lockout
	// RefusalTime is the step to which the time of a refusal is rounded up, so that it tells nothing of the account; 0: it is
	// not rounded. It has to be longer than the slowest kind of hash takes.
	RefusalTime time.Duration
	// BcryptPepper is what was put behind passwords before they were hashed by bcrypt elsewhere (password_config.pepper of
	// Synapse).
	BcryptPepper string
	Argon2       Argon2
	// Program is started to hash passwords, beside the process that serves; its main calls HashChild. Empty: they are hashed
	// in this process.
	Program string
}

// Lockout is what follows on wrong passwords: after some of them the account, or the address they came from, has to wait
// before another one is looked at, and longer after each further one.
type Lockout struct {
	// Attempts is how many wrong passwords an account has free; 10 if it is 0, no limit if it is negative.
	Attempts int
	// AddressAttempts is the same for an address, whatever the accounts; 100 if it is 0, no limit if it is negative.
	AddressAttempts int
	// Delay is the first wait, which doubles each time; 30 s if it is 0.
	Delay time.Duration
	// MaxDelay is the longest wait; an hour if it is 0.
	MaxDelay time.Duration
}

// Argon2 is the cost of a password hash (argon2id). Stored hashes of another cost are renewed at the next sign-in.
type Argon2 struct {
	// Time is the number of passes; 2 if it is 0.
	Time uint32
	// MemoryKiB is the memory of one hash; 19456 (19 MiB) if it is 0.
	MemoryKiB uint32
	// Threads is the parallelism of one hash; 1 if it is 0.
	Threads uint8
}

// SessionConfig is about access tokens.
type SessionConfig struct {
	// AccessTokenLifetime is how long access tokens of clients live that can refresh them; 5 minutes if it is 0. Tokens
	// of other clients do not expire.
	AccessTokenLifetime time.Duration
	// LoginTokens lets a signed-in user get a token that signs another device in (POST /login/get_token).
	LoginTokens bool
	// IdleLimit is how long a session lasts that is not used; 0: for ever. Longer than it takes to note that a device was
	// seen, some minutes.
	IdleLimit time.Duration
	// AbsoluteLimit is how long after the sign-in a session lasts; 0: for ever. Both end it softly: devices and keys stay.
	AbsoluteLimit time.Duration
}

// EmailConfig is about e-mail addresses.
type EmailConfig struct {
	// Enabled says that the server can send mail.
	Enabled bool
	// Required makes registration ask for an address.
	Required bool
	// Language is that of mails whose reader's language is not known: en or zh; en if it is empty.
	Language string
}

const (
	loginTokenLifetime = 2 * time.Minute
	uiaLifetime        = 15 * time.Minute
	nonceLifetime      = time.Minute
	maxPasswordLength  = 512 // bytes; hashing anything longer would be work for nothing
)

func (c Config) withDefaults() Config {
	if c.Registration.Mode == "" {
		c.Registration.Mode = RegistrationClosed
	}
	if c.Passwords.MinLength == 0 {
		c.Passwords.MinLength = 8
	}
	if l := &c.Passwords.Lockout; l.Attempts == 0 {
		l.Attempts = 10
	}
	if l := &c.Passwords.Lockout; l.AddressAttempts == 0 {
		l.AddressAttempts = 100
	}
	if l := &c.Passwords.Lockout; l.Delay == 0 {
		l.Delay = 30 * time.Second
	}
	if l := &c.Passwords.Lockout; l.MaxDelay == 0 {
		l.MaxDelay = time.Hour
	}
	if c.Passwords.Argon2.Time == 0 {
		c.Passwords.Argon2.Time = 2
	}
	if c.Passwords.Argon2.MemoryKiB == 0 {
		c.Passwords.Argon2.MemoryKiB = 19 * 1024
	}
	if c.Passwords.Argon2.Threads == 0 {
		c.Passwords.Argon2.Threads = 1
	}
	if c.Sessions.AccessTokenLifetime == 0 {
		c.Sessions.AccessTokenLifetime = 5 * time.Minute
	}
	if c.Email.Language == "" {
		c.Email.Language = "en"
	}
	return c
}
