package ldapsync

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// downFor is how long a server that could not be reached is tried last.
const downFor = 30 * time.Second

// dialer connects to the servers of one directory.
type dialer struct {
	cfg Config

	mu   sync.Mutex
	down map[string]time.Time // since when a server could not be reached
}

func newDialer(cfg Config) *dialer { return &dialer{cfg: cfg, down: map[string]time.Time{}} }

// unreachable says that no server of a directory answered.
type unreachable struct{ err error }

func (e *unreachable) Error() string { return e.err.Error() }
func (e *unreachable) Unwrap() error { return e.err }

// order is the servers as they are tried: those that failed lately come last.
func (d *dialer) order() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := slices.Clone(d.cfg.Servers)
	slices.SortStableFunc(out, func(a, b string) int {
		return boolInt(time.Since(d.down[a]) < downFor) - boolInt(time.Since(d.down[b]) < downFor)
	})
	return out
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (d *dialer) note(server string, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ok {
		delete(d.down, server)
	} else {
		d.down[server] = time.Now()
	}
}

// open connects to the first server that answers, without binding. The connection closes when ctx ends, by the func
// that comes with it, which is always to be called.
func (d *dialer) open(ctx context.Context) (*ldap.Conn, string, func(), error) {
	var failed []error
	for _, server := range d.order() {
		conn, err := d.dial(ctx, server)
		d.note(server, err == nil)
		if err != nil {
			if ctx.Err() != nil {
				return nil, "", nil, ctx.Err()
			}
			failed = append(failed, fmt.Errorf("%s: %w", server, explainDial(err)))
			continue
		}
		conn.SetTimeout(d.cfg.Timeout)
		stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
		return conn, server, func() { stop(); _ = conn.Close() }, nil
	}
	return nil, "", nil, &unreachable{fmt.Errorf("no server of the directory %s can be reached: %w", d.cfg.ID, errors.Join(failed...))}
}

func (d *dialer) dial(ctx context.Context, server string) (*ldap.Conn, error) {
	u, err := url.Parse(server)
	if err != nil {
		return nil, err
	}
	tlsConfig := d.cfg.tlsConfig(u.Hostname())
	// A server that went away without a word is found out by the probes: a search that is held open has no time limit.
	nd := &net.Dialer{Timeout: d.cfg.Timeout, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 4}}
	if deadline, ok := ctx.Deadline(); ok {
		nd.Deadline = deadline
	}
	conn, err := ldap.DialURL(server, ldap.DialWithDialer(nd), ldap.DialWithTLSConfig(tlsConfig))
	if err != nil || u.Scheme != "ldap" || !d.cfg.StartTLS {
		return conn, err
	}
	conn.SetTimeout(d.cfg.Timeout)
	if err := conn.StartTLS(tlsConfig); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("StartTLS: %w", err)
	}
	return conn, nil
}

// service connects and binds as the account that reads the directory.
func (d *dialer) service(ctx context.Context) (*ldap.Conn, string, func(), error) {
	conn, server, done, err := d.open(ctx)
	if err != nil {
		return nil, "", nil, err
	}
	if d.cfg.BindDN == "" {
		return conn, server, done, nil
	}
	if err := conn.Bind(d.cfg.BindDN, d.cfg.BindPassword); err != nil {
		done()
		if ldap.IsErrorWithCode(err, ldap.ErrorNetwork) {
			d.note(server, false)
			return nil, "", nil, &unreachable{fmt.Errorf("%s: %w", server, err)}
		}
		return nil, "", nil, fmt.Errorf("%s: bind_dn %s cannot bind: %w", server, d.cfg.BindDN, explainBind(err))
	}
	return conn, server, done, nil
}

// explainDial says in plain words what is wrong with a connection.
func explainDial(err error) error {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return fmt.Errorf("its certificate is signed by an authority that is not trusted: set ca_file: %w", err)
	case errors.As(err, &host):
		return fmt.Errorf("its certificate is for another name: %w", err)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("its certificate has expired or is not valid yet (is a clock wrong?): %w", err)
	}
	return err
}

// Why a bind was refused.
type refusal int

const (
	refusedOther refusal = iota
	refusedPassword
	refusedExpired
	refusedMustChange
	refusedDisabled
	refusedLockedOut
	refusedAccountExpired
	refusedHours
	refusedEncryption
)

// adCodes are the sub-codes in Active Directory's answer 49 ("… data 52e, v4563").
var adCodes = map[string]refusal{
	"525": refusedPassword, "52e": refusedPassword, "530": refusedHours, "531": refusedHours, "532": refusedExpired, "533": refusedDisabled,
	"701": refusedAccountExpired, "773": refusedMustChange, "775": refusedLockedOut,
}

var refusalTexts = map[refusal]string{
	refusedPassword:       "the name or the password is wrong",
	refusedExpired:        "the password has expired",
	refusedMustChange:     "the password must be changed first",
	refusedDisabled:       "the account is disabled",
	refusedLockedOut:      "the account is locked after too many wrong passwords",
	refusedAccountExpired: "the account has expired",
	refusedHours:          "the account may not sign in at this time or from here",
	refusedEncryption:     "the directory wants an encrypted connection: use ldaps:// or start_tls",
}

// reason finds out why a bind was refused.
func reason(err error) refusal {
	var e *ldap.Error
	if !errors.As(err, &e) {
		return refusedOther
	}
	switch e.ResultCode {
	case ldap.LDAPResultStrongAuthRequired, ldap.LDAPResultConfidentialityRequired:
		return refusedEncryption
	case ldap.LDAPResultInvalidCredentials:
		if e.Err != nil {
			if _, rest, ok := strings.Cut(e.Err.Error(), "data "); ok {
				code, _, _ := strings.Cut(rest, ",")
				if r, known := adCodes[strings.ToLower(strings.TrimSpace(code))]; known {
					return r
				}
			}
		}
		return refusedPassword
	case ldap.LDAPResultNoSuchObject, ldap.LDAPResultInappropriateAuthentication:
		return refusedPassword // no such entry, or it has no password
	}
	return refusedOther
}

func explainBind(err error) error {
	if text := refusalTexts[reason(err)]; text != "" {
		return fmt.Errorf("%s (%w)", text, err)
	}
	return err
}

// explainSearch says in plain words why a search failed.
func explainSearch(base string, err error) error {
	switch {
	case ldap.IsErrorWithCode(err, ldap.LDAPResultSizeLimitExceeded):
		return fmt.Errorf("search below %s: the directory's size limit stops the search; raise it for the bind account (and allow paged results): %w", base, err)
	case ldap.IsErrorWithCode(err, ldap.LDAPResultTimeLimitExceeded), ldap.IsErrorWithCode(err, ldap.LDAPResultAdminLimitExceeded):
		return fmt.Errorf("search below %s: a limit of the directory stops the search: %w", base, err)
	case ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchObject):
		return fmt.Errorf("search below %s: there is no such entry, or the bind account may not see it: %w", base, err)
	case ldap.IsErrorWithCode(err, ldap.LDAPResultReferral), ldap.IsErrorWithCode(err, ldap.LDAPResultLoopDetect):
		return fmt.Errorf("search below %s: the server refers to another one; name that one in servers (referrals are not followed): %w", base, err)
	case ldap.IsErrorWithCode(err, ldap.LDAPResultInsufficientAccessRights):
		return fmt.Errorf("search below %s: the bind account lacks the right: %w", base, err)
	}
	return fmt.Errorf("search below %s: %w", base, err)
}

// search reads all entries of a filter in pages. Anything but a complete answer is an error: what a search did not
// return counts as deleted otherwise. Continuation references are counted, never followed.
func search(ctx context.Context, conn *ldap.Conn, req ldap.SearchRequest, pageSize int, fn func(*ldap.Entry) error) (references int, err error) {
	paging := ldap.NewControlPaging(uint32(pageSize))
	controls := req.Controls
	for {
		if ctx.Err() != nil {
			return references, ctx.Err()
		}
		began := time.Now()
		page := req
		page.Controls = append(slices.Clone(controls), paging)
		res, err := conn.Search(&page)
		if err != nil {
			return references, explainSearch(req.BaseDN, err)
		}
		references += len(res.Referrals)
		for _, e := range res.Entries {
			if err := fn(e); err != nil {
				return references, err
			}
		}
		next, ok := ldap.FindControl(res.Controls, ldap.ControlTypePaging).(*ldap.ControlPaging)
		if !ok || len(next.Cookie) == 0 {
			return references, nil
		}
		paging.SetCookie(next.Cookie)
		rest(ctx, time.Since(began))
	}
}

// rest lets others have the processors after a piece of a large answer, for twice as long as that took (50 ms at the most): to take
// answers apart needs one, and a directory on the same machine another.
func rest(ctx context.Context, took time.Duration) { pause(ctx, min(2*took, 50*time.Millisecond)) }
