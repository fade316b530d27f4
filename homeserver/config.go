package homeserver

import (
	"cmp"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/media"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// Config is the whole configuration. Every key is described in config.example.yaml; a key's environment variable is its path
// in capitals behind MOOTHALL_, with "_" for every dot (MOOTHALL_DATABASE_URL).
type Config struct {
	ServerName   string       `yaml:"server_name"`
	PublicURL    string       `yaml:"public_url"`
	DataDir      string       `yaml:"data_dir"`
	Listen       []Listen     `yaml:"listen"`
	Database     Database     `yaml:"database"`
	Registration Registration `yaml:"registration"`
	Passwords    Passwords    `yaml:"passwords"`
	Sessions     Sessions     `yaml:"sessions"`
	Accounts     Accounts     `yaml:"accounts"`
	Audit        Audit        `yaml:"audit"`
	Email        Email        `yaml:"email"`
	Branding     Branding     `yaml:"branding"`
	SSO          SSO          `yaml:"sso"`
	OAuth        OAuth        `yaml:"oauth"`
	RateLimits   RateLimits   `yaml:"rate_limits"`
	Media        Media        `yaml:"media"`
	Push         Push         `yaml:"push"`
	TURN         TURN         `yaml:"turn"`
	RTC          RTC          `yaml:"rtc"`
	WellKnown    WellKnown    `yaml:"well_known"`
	Policy       []RoomPolicy `yaml:"policy_servers"`
	Outgoing     Outgoing     `yaml:"outgoing"`
	People       People       `yaml:"people"`
	Notices      Notices      `yaml:"server_notices"`
	Directories  []Directory  `yaml:"directories"`
	Groups       Groups       `yaml:"groups"`
	HR           HR           `yaml:"hr"`
	Hooks        Hooks        `yaml:"hooks"`
	OA           OA           `yaml:"oa"`
	AppServices  AppServices  `yaml:"appservices"`
	Search       Search       `yaml:"search"`
	Compliance   Compliance   `yaml:"compliance"`
	Log          Log          `yaml:"log"`
	Metrics      Metrics      `yaml:"metrics"`

	// Warnings are what the operator should know of although the server can start.
	Warnings []string `yaml:"-"`
}

// Listen is one address to listen on.
type Listen struct {
	Address        string   `yaml:"address"`
	TLS            TLS      `yaml:"tls"`
	Serve          []string `yaml:"serve"` // client, metrics; empty: client
	TrustedProxies []string `yaml:"trusted_proxies"`
}

// What a listener serves.
const (
	ServeClient  = "client"
	ServeMetrics = "metrics"
)

// TLS names the files of a certificate. They are read again when they change.
type TLS struct {
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
}

// Database is where the data lie.
type Database struct {
	URL            Secret `yaml:"url"` // empty: SQLite in data_dir
	URLFile        string `yaml:"url_file"`
	ListenURL      Secret `yaml:"listen_url"`
	ListenURLFile  string `yaml:"listen_url_file"`
	MaxConnections int    `yaml:"max_connections"`
}

// Registration says who may make an account.
type Registration struct {
	Mode             string `yaml:"mode"`
	RequireEmail     bool   `yaml:"require_email"`
	Guests           bool   `yaml:"guests"`
	SharedSecret     Secret `yaml:"shared_secret"`
	SharedSecretFile string `yaml:"shared_secret_file"`
}

// Passwords is for passwords that this server keeps.
type Passwords struct {
	MinLength        int      `yaml:"min_length"`
	MinStrength      int      `yaml:"min_strength"`
	History          int      `yaml:"history"`
	MaxAge           Duration `yaml:"max_age"` // 0: for ever
	Lockout          Lockout  `yaml:"lockout"`
	BcryptPepper     Secret   `yaml:"bcrypt_pepper"`
	BcryptPepperFile string   `yaml:"bcrypt_pepper_file"`
	Argon2           Argon2   `yaml:"argon2"`

	// Program is started to hash passwords; its main calls account.HashChild. Empty: they are hashed in this process.
	Program string `yaml:"-"`
}

// Argon2 is the cost of one password hash.
type Argon2 struct {
	Memory      Size `yaml:"memory"`
	Iterations  int  `yaml:"iterations"`
	Parallelism int  `yaml:"parallelism"`
}

// Sessions is about access tokens.
type Sessions struct {
	AccessTokenLifetime Duration `yaml:"access_token_lifetime"`
	LoginTokens         bool     `yaml:"login_tokens"`
	IdleLimit           Duration `yaml:"idle_limit"`     // 0: for ever
	AbsoluteLimit       Duration `yaml:"absolute_limit"` // 0: for ever
}

// Email is the mail server by which the server sends mail.
type Email struct {
	Server       string `yaml:"server"` // host:port; empty: no mail is sent
	TLS          string `yaml:"tls"`    // starttls, implicit, none
	Username     string `yaml:"username"`
	Password     Secret `yaml:"password"`
	PasswordFile string `yaml:"password_file"`
	From         string `yaml:"from"`
	Language     string `yaml:"language"`
}

// RateLimits are requests per user, or per address where there is no user.
type RateLimits struct {
	Enabled       bool      `yaml:"enabled"`
	Read          RateLimit `yaml:"read"`
	Send          RateLimit `yaml:"send"`
	Create        RateLimit `yaml:"create"`
	Join          RateLimit `yaml:"join"`
	Invite        RateLimit `yaml:"invite"`
	Login         RateLimit `yaml:"login"`
	Register      RateLimit `yaml:"register"`
	Media         RateLimit `yaml:"media"`
	UserDirectory RateLimit `yaml:"user_directory"`
}

// RateLimit is one class: requests per second in the long run (0: unlimited) and how many may come at once.
type RateLimit struct {
	PerSecond float64 `yaml:"per_second"`
	Burst     int     `yaml:"burst"`
}

// Media is about uploaded files.
type Media struct {
	Path          string         `yaml:"path"` // empty: media inside data_dir
	MaxUploadSize Size           `yaml:"max_upload_size"`
	URLPreviews   bool           `yaml:"url_previews"`
	ImageMemory   Size           `yaml:"image_memory"`
	Retention     MediaRetention `yaml:"retention"`
}

// MediaRetention is how long files are kept that nobody fetches.
type MediaRetention struct {
	Local Duration `yaml:"local"` // 0: for ever
}

// Push is about notifications to push gateways.
type Push struct {
	AllowPrivateAddresses bool     `yaml:"allow_private_addresses"`
	MailAfter             Duration `yaml:"mail_after"`
	ThreadSubscriptions   bool     `yaml:"thread_subscriptions"`
}

// TURN is the relay that clients are told to use for calls.
type TURN struct {
	URIs             []string `yaml:"uris"`
	SharedSecret     Secret   `yaml:"shared_secret"`
	SharedSecretFile string   `yaml:"shared_secret_file"`
	TTL              Duration `yaml:"ttl"`
}

// WellKnown is what /.well-known/matrix/support and /.well-known/matrix/server say.
type WellKnown struct {
	Server      string    `yaml:"server"` // for other servers; empty: they look at server_name itself
	SupportPage string    `yaml:"support_page"`
	Contacts    []Contact `yaml:"contacts"`
}

// Contact is a person or a desk that looks after the server.
type Contact struct {
	Role     string `yaml:"role"` // m.role.admin, m.role.security
	Email    string `yaml:"email"`
	MatrixID string `yaml:"matrix_id"`
}

// Outgoing is for every HTTP request that the server makes.
type Outgoing struct {
	Proxy     Secret `yaml:"proxy"`
	ProxyFile string `yaml:"proxy_file"`
	CAFile    string `yaml:"ca_file"`
}

// Log is about the server's own log.
type Log struct {
	Level  string `yaml:"level"`
	Format string `yaml:"format"`
}

// Metrics is where Prometheus reads.
type Metrics struct {
	Address string `yaml:"address"`
}

// DefaultConfig is what holds where nothing is configured.
func DefaultConfig() Config {
	return Config{
		DataDir:      "./data",
		Listen:       []Listen{{Address: "127.0.0.1:8008", Serve: []string{ServeClient}}},
		Database:     Database{MaxConnections: 16},
		Registration: Registration{Mode: account.RegistrationClosed},
		Passwords:    defaultPasswords(),
		Audit:        defaultAudit(),
		Email:        Email{TLS: "starttls", Language: "en"},
		SSO:          defaultSSO(),
		Search:       defaultSearch(),
		Compliance:   defaultCompliance(),
		OAuth:        defaultOAuth(),
		Sessions:     Sessions{AccessTokenLifetime: Duration(5 * minute)},
		RateLimits: RateLimits{
			Enabled:       true,
			Read:          RateLimit{50, 200},
			Send:          RateLimit{10, 50},
			Create:        RateLimit{0.5, 20},
			Join:          RateLimit{1, 30},
			Invite:        RateLimit{1, 50},
			Login:         RateLimit{1, 50},
			Register:      RateLimit{0.5, 20},
			Media:         RateLimit{20, 200},
			UserDirectory: RateLimit{5, 30},
		},
		Media:  Media{MaxUploadSize: 50 << 20, ImageMemory: 256 << 20},
		TURN:   TURN{TTL: Duration(day)},
		RTC:    RTC{MaxDelay: Duration(day)},
		Push:   Push{MailAfter: Duration(10 * minute)},
		Groups: Groups{ServiceAccount: defaultServiceAccount, ServiceName: "Moothall"},
		OA:     OA{Language: "zh", LinkLifetime: Duration(7 * day), StepUpAge: Duration(15 * minute)},
		HR:     HR{Localpart: "{{.UserPart}}", Departments: true},
		Hooks:  defaultHooks(),
		Log:    Log{Level: "info", Format: "text"},
	}
}

// LoadConfig reads the file (none if path is empty), then the environment ("NAME=value" as os.Environ gives it), then
// the files that secrets lie in, and checks the whole. An error names the line or the variable and what would be right.
func LoadConfig(path string, environ []string) (Config, error) {
	c := DefaultConfig()
	d := newConfigReader(path)
	if path != "" {
		b, err := os.ReadFile(path)
		if err != nil {
			return c, fmt.Errorf("read the configuration: %w", err)
		}
		if err := d.readYAML(b, &c); err != nil {
			return c, err
		}
	}
	if err := d.readEnvironment(environ, &c); err != nil {
		return c, err
	}
	if err := d.readSecretFiles(&c); err != nil {
		return c, err
	}
	c.warn()
	c.complete()
	if err := c.check(d); err != nil {
		return c, err
	}
	return c, nil
}

// complete sets what follows from other values. Doing so twice changes nothing.
func (c *Config) complete() {
	if c.ServerName == "" {
		c.ServerName = "localhost"
	}
	for i := range c.Listen {
		if len(c.Listen[i].Serve) == 0 {
			c.Listen[i].Serve = []string{ServeClient}
		}
	}
	if c.PublicURL == "" {
		c.PublicURL = c.defaultPublicURL()
	}
	c.PublicURL = strings.TrimRight(c.PublicURL, "/")
	if c.Media.Path == "" {
		c.Media.Path = filepath.Join(c.DataDir, "media")
	}
}

// warn notes what is allowed, but seldom meant.
func (c *Config) warn() {
	if c.ServerName == "" {
		c.Warnings = append(c.Warnings, "server_name is not set: the server calls itself localhost, which cannot be changed once it has users")
	}
	if c.Registration.Mode == account.RegistrationOpen {
		c.Warnings = append(c.Warnings, "registration.mode is open: anyone who reaches this server can make an account")
	}
	if c.Email.TLS == "none" && c.Email.Username != "" {
		c.Warnings = append(c.Warnings, "email.tls is none: the mail server's password travels unencrypted")
	}
	if !c.RateLimits.Enabled {
		c.Warnings = append(c.Warnings, "rate_limits.enabled is false: one client can use the whole server")
	}
}

// defaultPublicURL is the first client listener's own address while the server is only a trial on this machine.
func (c *Config) defaultPublicURL() string {
	if c.ServerName != "localhost" {
		return "https://" + c.ServerName
	}
	for _, l := range c.Listen {
		host, port, err := net.SplitHostPort(l.Address)
		if err != nil || !l.serves(ServeClient) {
			continue
		}
		if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
			host = "127.0.0.1"
		}
		scheme := "http"
		if l.TLS.Certificate != "" {
			scheme = "https"
		}
		return scheme + "://" + net.JoinHostPort(host, port)
	}
	return "http://localhost"
}

func (l Listen) serves(what string) bool {
	for _, s := range l.Serve {
		if s == what {
			return true
		}
	}
	return false
}

// proxies reads trusted_proxies; a bare address is a network of one.
func (l Listen) proxies() ([]netip.Prefix, error) {
	out := make([]netip.Prefix, 0, len(l.TrustedProxies))
	for _, s := range l.TrustedProxies {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()))
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("%q must be an address or a network such as 10.0.0.0/8", s)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// StoreConfig is the database's part.
func (c *Config) StoreConfig() store.Config {
	return store.Config{URL: string(c.Database.URL), DataDir: c.DataDir, MaxConns: c.Database.MaxConnections, ListenURL: string(c.Database.ListenURL)}
}

// AccountConfig is the accounts' part.
func (c *Config) AccountConfig() account.Config {
	out := account.Config{
		Registration: account.RegistrationConfig{Mode: c.Registration.Mode, SharedSecret: string(c.Registration.SharedSecret), Guests: c.Registration.Guests},
		Passwords: account.PasswordConfig{MinLength: c.Passwords.MinLength, Program: c.Passwords.Program, Argon2: account.Argon2{
			Time:      uint32(c.Passwords.Argon2.Iterations),
			MemoryKiB: uint32(c.Passwords.Argon2.Memory / 1024),
			Threads:   uint8(c.Passwords.Argon2.Parallelism),
		}},
		Sessions: account.SessionConfig{AccessTokenLifetime: c.Sessions.AccessTokenLifetime.Std(), LoginTokens: c.Sessions.LoginTokens},
		Email:    account.EmailConfig{Enabled: c.Email.Server != "", Required: c.Registration.RequireEmail},
	}
	c.completeAccounts(&out)
	return out
}

// MediaConfig is the content repository's part.
func (c *Config) MediaConfig() media.Config {
	return media.Config{MaxUpload: int64(c.Media.MaxUploadSize), ImageMemory: int64(c.Media.ImageMemory), Previews: c.Media.URLPreviews, Retention: c.Media.Retention.Local.Std()}
}

// Limiter makes the rate limiter, nil where limits are off.
func (c *Config) Limiter() *web.Limiter {
	if !c.RateLimits.Enabled {
		return nil
	}
	r, sizes := &c.RateLimits, map[web.Rate]web.Bucket{}
	for rate, l := range map[web.Rate]RateLimit{
		web.RateRead: r.Read, web.RateSend: r.Send, web.RateCreate: r.Create, web.RateJoin: r.Join, web.RateInvite: r.Invite,
		web.RateLogin: r.Login, web.RateRegister: r.Register, web.RateMedia: r.Media, web.RateUserDirectory: r.UserDirectory,
	} {
		sizes[rate] = web.Bucket{PerSecond: l.PerSecond, Burst: l.Burst}
	}
	return web.NewLimiter(sizes)
}

// Logger makes the server's logger; what it writes goes to w.
func (c *Config) Logger(w *os.File) *slog.Logger {
	opts := &slog.HandlerOptions{Level: logLevels[cmp.Or(c.Log.Level, "info")]}
	if c.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

var logLevels = map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}

// isHTTP tells whether s is the address of a web server.
func isHTTP(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}
