package factor_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pquerna/otp/hotp"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/sso/factor"
)

const alice, bob = id.UserID("@alice:test"), id.UserID("@bob:test")

// clock is a time that the test moves.
type clock struct{ ms atomic.Int64 }

func (c *clock) now() time.Time          { return time.UnixMilli(c.ms.Load()) }
func (c *clock) forward(d time.Duration) { c.ms.Add(d.Milliseconds()) }

// fixture is one or more nodes on one database.
type fixture struct {
	*factor.Factors
	nodes []*factor.Factors
	store *store.Store
	clock *clock
	sms   *gateway
	roles map[id.UserID][]string
}

// gateway is an HTTP server that takes SMS.
type gateway struct {
	*httptest.Server
	mu      sync.Mutex
	bodies  []string
	headers []http.Header
	status  int
	answer  string
}

func newGateway(t *testing.T) *gateway {
	g := &gateway{status: 200, answer: `{"Code":"OK"}`}
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		g.mu.Lock()
		defer g.mu.Unlock()
		g.bodies, g.headers = append(g.bodies, string(b)), append(g.headers, r.Header)
		w.WriteHeader(g.status)
		_, _ = io.WriteString(w, g.answer)
	}))
	t.Cleanup(g.Close)
	return g
}

var sixDigits = regexp.MustCompile(`\b\d{6}\b`)

// last is the newest SMS and the code in it.
func (g *gateway) last(t *testing.T) (body, code string) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.bodies) == 0 {
		t.Fatal("no SMS was sent")
	}
	body = g.bodies[len(g.bodies)-1]
	if code = sixDigits.FindString(body); code == "" {
		t.Fatalf("no code in %q", body)
	}
	return body, code
}

func (g *gateway) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.bodies)
}

// open makes a fixture on a database; on PostgreSQL it has two nodes.
func open(t *testing.T, cfg store.Config, conf factor.Config, logTo io.Writer) *fixture {
	t.Helper()
	fx := &fixture{clock: &clock{}, sms: newGateway(t), roles: map[id.UserID][]string{}}
	fx.clock.ms.Store(1_700_000_010_000)
	if conf.Allow == nil {
		conf.Allow = factor.Kinds
	}
	if conf.SMS == nil {
		conf.SMS = &factor.SMSConfig{
			URL: fx.sms.URL + "/send", Headers: map[string]string{"X-Sign": `{{hmac_sha256 "key" .Digits}}`, "Content-Type": "application/json"},
			Body: `{"to":{{json .Number}},"national":{{json .National}},"text":{{json .Text}}}`, Expect: `"Code":"OK"`,
		}
	}
	if logTo == nil {
		logTo = io.Discard
	}
	nodes := 1
	if cfg.URL != "" {
		nodes = 2
	}
	for range nodes {
		s, err := store.Open(context.Background(), cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.Follow(ctx, nil, nil) }()
		<-s.Following()
		t.Cleanup(func() {
			cancel()
			<-done
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		f, err := factor.New(factor.Deps{
			Store: s, ServerName: "test", PublicURL: "https://matrix.test", Config: conf, Clock: fx.clock.now,
			Logger: slog.New(slog.NewTextHandler(logTo, &slog.HandlerOptions{Level: slog.LevelDebug})), MailQueued: func() {},
			Roles: func(_ context.Context, user id.UserID) ([]string, error) { return fx.roles[user], nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		fx.nodes = append(fx.nodes, f)
		if fx.store == nil {
			fx.store, fx.Factors = s, f
		}
	}
	return fx
}

func each(t *testing.T, conf factor.Config, fn func(t *testing.T, fx *fixture)) {
	t.Helper()
	storetest.Each(t, func(t *testing.T, cfg store.Config) { fn(t, open(t, cfg, conf, nil)) })
}

var here = factor.From{IP: netip.MustParseAddr("203.0.113.5"), Agent: "test", Lang: "en"}

// totp enrols an authenticator app and gives its secret and the recovery codes.
func (fx *fixture) totp(t *testing.T, user id.UserID) (secret string, recovery []string) {
	t.Helper()
	e, err := fx.BeginEnrol(t.Context(), user, factor.TOTP, "Phone", "", here)
	if err != nil {
		t.Fatal(err)
	}
	out, err := fx.Confirm(t.Context(), user, factor.TOTP, e.ID, "", url.Values{"code": {fx.code(t, e.Secret, 0)}})
	if err != nil {
		t.Fatal(err)
	}
	fx.clock.forward(30 * time.Second) // the code that proved it is used up
	return e.Secret, out.Recovery
}

// code is what an app shows whose clock is some steps off.
func (fx *fixture) code(t *testing.T, secret string, off int64) string {
	t.Helper()
	code, err := hotp.GenerateCode(secret, uint64(fx.clock.now().Unix()/30+off))
	if err != nil {
		t.Fatal(err)
	}
	return code
}

func (fx *fixture) check(t *testing.T, user id.UserID, k factor.Kind, kv ...string) error {
	t.Helper()
	form := url.Values{}
	for i := 0; i < len(kv); i += 2 {
		form.Set(kv[i], kv[i+1])
	}
	_, err := fx.Check(t.Context(), user, k, form)
	return err
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if code == "" && err != nil || code != "" && !mxerr.Is(err, code) {
		t.Fatalf("got %v, want %q", err, code)
	}
}

func TestTOTP(t *testing.T) {
	each(t, factor.Config{}, func(t *testing.T, fx *fixture) {
		e, err := fx.BeginEnrol(t.Context(), alice, factor.TOTP, "Phone", "", here)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(e.URL, "otpauth://totp/test:@alice:test?") || !strings.HasPrefix(string(e.QR), "data:image/png;base64,") {
			t.Errorf("bad URL %q or QR code", e.URL)
		}
		wantCode(t, fx.check(t, alice, factor.TOTP, "code", fx.code(t, e.Secret, 0)), "M_FORBIDDEN") // not proved yet
		if list, _, err := fx.List(t.Context(), alice); err != nil || len(list) != 0 {
			t.Fatalf("an unproved factor is listed: %v %v", list, err)
		}
		if _, err := fx.Confirm(t.Context(), bob, factor.TOTP, e.ID, "", url.Values{"code": {fx.code(t, e.Secret, 0)}}); !mxerr.Is(err, "M_NOT_FOUND") {
			t.Fatalf("somebody else confirms a factor: %v", err)
		}
		_, err = fx.Confirm(t.Context(), alice, factor.TOTP, e.ID, "", url.Values{"code": {"000000"}})
		wantCode(t, err, "M_FORBIDDEN")
		code := fx.code(t, e.Secret, 0)
		out, err := fx.Confirm(t.Context(), alice, factor.TOTP, e.ID, "", url.Values{"code": {code[:3] + " " + code[3:]}})
		if err != nil || len(out.Recovery) != 10 || !slices.Equal(out.AMR, []string{"otp"}) {
			t.Fatalf("got %+v %v", out, err)
		}
		wantCode(t, fx.check(t, alice, factor.TOTP, "code", code), "M_FORBIDDEN") // used up by the enrolment

		fx.clock.forward(5 * time.Minute)
		for _, tc := range []struct {
			name string
			off  int64
			want string
		}{
			{"two steps behind", -2, "M_FORBIDDEN"}, {"two steps ahead", 2, "M_FORBIDDEN"},
			{"one step behind", -1, ""}, {"on time", 0, ""}, {"on time again", 0, "M_FORBIDDEN"},
			{"one step behind, after a later one", -1, "M_FORBIDDEN"}, {"one step ahead", 1, ""}, {"that again", 1, "M_FORBIDDEN"},
		} {
			if got := fx.check(t, alice, factor.TOTP, "code", fx.code(t, e.Secret, tc.off)); (got == nil) != (tc.want == "") {
				t.Errorf("%s: %v", tc.name, got)
			}
		}
		wantCode(t, fx.check(t, bob, factor.TOTP, "code", fx.code(t, e.Secret, 1)), "M_FORBIDDEN")
	})
}

// TestEnrolmentExpires shows that what is not proved in time is not enrolled.
func TestEnrolmentExpires(t *testing.T) {
	each(t, factor.Config{}, func(t *testing.T, fx *fixture) {
		e, err := fx.BeginEnrol(t.Context(), alice, factor.TOTP, "Phone", "", here)
		if err != nil {
			t.Fatal(err)
		}
		fx.clock.forward(16 * time.Minute)
		_, err = fx.Confirm(t.Context(), alice, factor.TOTP, e.ID, "", url.Values{"code": {fx.code(t, e.Secret, 0)}})
		wantCode(t, err, "M_NOT_FOUND")
	})
}

// TestOneCodeOnce sends one code by several requests at the same time, on two nodes where there are two.
func TestOneCodeOnce(t *testing.T) {
	each(t, factor.Config{}, func(t *testing.T, fx *fixture) {
		secret, recovery := fx.totp(t, alice)
		e, err := fx.BeginEnrol(t.Context(), alice, factor.SMS, "Phone", "13800138000", here)
		if err != nil {
			t.Fatal(err)
		}
		_, code := fx.sms.last(t)
		if _, err := fx.Confirm(t.Context(), alice, factor.SMS, e.ID, "", url.Values{"challenge": {e.Challenge.ID}, "code": {code}}); err != nil {
			t.Fatal(err)
		}
		fx.clock.forward(2 * time.Minute)
		c, err := fx.Begin(t.Context(), alice, factor.SMS, "", here)
		if err != nil {
			t.Fatal(err)
		}
		_, sms := fx.sms.last(t)
		for _, tc := range []struct {
			kind factor.Kind
			form url.Values
		}{
			{factor.TOTP, url.Values{"code": {fx.code(t, secret, 0)}}},
			{factor.Recovery, url.Values{"code": {recovery[3]}}},
			{factor.SMS, url.Values{"code": {sms}, "challenge": {c.ID}}},
		} {
			t.Run(string(tc.kind), func(t *testing.T) {
				var passed atomic.Int64
				var wg sync.WaitGroup
				for i := range 4 {
					wg.Go(func() {
						_, err := fx.nodes[i%len(fx.nodes)].Check(context.Background(), alice, tc.kind, tc.form)
						if err == nil {
							passed.Add(1)
						} else if !mxerr.Is(err, "M_FORBIDDEN") {
							t.Errorf("unexpected: %v", err)
						}
					})
				}
				wg.Wait()
				if passed.Load() != 1 {
					t.Errorf("%d requests passed with one code", passed.Load())
				}
				fx.clock.forward(0)
				// Wrong tries must not add up over the cases.
				fx.clock.forward(30 * time.Second)
				if err := fx.check(t, alice, factor.TOTP, "code", fx.code(t, secret, 0)); err != nil {
					t.Fatal(err)
				}
			})
		}
	})
}

// TestBruteForce tries many codes at once and one after the other.
func TestBruteForce(t *testing.T) {
	each(t, factor.Config{}, func(t *testing.T, fx *fixture) {
		secret, _ := fx.totp(t, alice)
		var looked, limited atomic.Int64
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				_, err := fx.nodes[i%len(fx.nodes)].Check(context.Background(), alice, factor.TOTP, url.Values{"code": {"abcdef"}})
				switch {
				case mxerr.Is(err, "M_FORBIDDEN"):
					looked.Add(1)
				case mxerr.Is(err, "M_LIMIT_EXCEEDED"):
					limited.Add(1)
				default:
					t.Errorf("unexpected: %v", err)
				}
			})
		}
		wg.Wait()
		if looked.Load() != 5 || limited.Load() != 35 {
			t.Errorf("%d tries were looked at, %d refused", looked.Load(), limited.Load())
		}
		wantCode(t, fx.check(t, alice, factor.TOTP, "code", fx.code(t, secret, 0)), "M_LIMIT_EXCEEDED") // even the right one
		for _, wait := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute} {
			fx.clock.forward(wait - time.Second)
			err := fx.check(t, alice, factor.TOTP, "code", "123456")
			if !mxerr.Is(err, "M_LIMIT_EXCEEDED") || mxerr.As(err).RetryAfter != time.Second {
				t.Fatalf("after %s: %v", wait, err)
			}
			fx.clock.forward(time.Second)
			wantCode(t, fx.check(t, alice, factor.TOTP, "code", "12345x"), "M_FORBIDDEN")
		}
		fx.clock.forward(8 * time.Minute)
		wantCode(t, fx.check(t, alice, factor.TOTP, "code", fx.code(t, secret, 0)), "")
		wantCode(t, fx.check(t, alice, factor.TOTP, "code", "12345x"), "M_FORBIDDEN") // counted anew
	})
}

func TestSMS(t *testing.T) {
	each(t, factor.Config{}, func(t *testing.T, fx *fixture) {
		_, err := fx.BeginEnrol(t.Context(), alice, factor.SMS, "Phone", "12345", here)
		wantCode(t, err, "M_INVALID_PARAM")
		e, err := fx.BeginEnrol(t.Context(), alice, factor.SMS, "Phone", " 138 0013-8000", factor.From{IP: here.IP, Lang: "zh"})
		if err != nil {
			t.Fatal(err)
		}
		body, code := fx.sms.last(t)
		if want := `{"to":"+8613800138000","national":"13800138000","text":"您的登录验证码是 ` + code + `，5 分钟内有效。请勿告诉任何人。"}`; body != want {
			t.Errorf("the gateway got %s, want %s", body, want)
		}
		if sign := fx.sms.headers[0].Get("X-Sign"); len(sign) != 64 {
			t.Errorf("signature %q", sign)
		}
		if e.Challenge.To != "+86•••••••8000" {
			t.Errorf("shown as %q", e.Challenge.To)
		}
		// A code for enrolment is none for signing in, and none for somebody else.
		wantCode(t, fx.check(t, alice, factor.SMS, "challenge", e.Challenge.ID, "code", code), "M_FORBIDDEN")
		_, err = fx.Confirm(t.Context(), alice, factor.SMS, e.ID, "", url.Values{"challenge": {e.Challenge.ID}, "code": {code}})
		wantCode(t, err, "M_FORBIDDEN") // it was used by the wrong try above
		fx.clock.forward(time.Minute)
		if e, err = fx.BeginEnrol(t.Context(), alice, factor.SMS, "Phone", "+8613800138000", here); err != nil {
			t.Fatal(err)
		}
		_, code = fx.sms.last(t)
		if _, err = fx.Confirm(t.Context(), alice, factor.SMS, e.ID, "", url.Values{"challenge": {e.Challenge.ID}, "code": {code}}); err != nil {
			t.Fatal(err)
		}

		_, err = fx.Begin(t.Context(), alice, factor.SMS, "", here)
		wantCode(t, err, "M_LIMIT_EXCEEDED") // within a minute
		send := func() (factor.Challenge, string) {
			t.Helper()
			fx.clock.forward(time.Minute)
			c, err := fx.Begin(t.Context(), alice, factor.SMS, "", here)
			if err != nil {
				t.Fatal(err)
			}
			_, code := fx.sms.last(t)
			return c, code
		}
		old, oldCode := send()
		c, code := send()
		wantCode(t, fx.check(t, alice, factor.SMS, "challenge", old.ID, "code", oldCode), "M_FORBIDDEN") // a newer one was sent
		wantCode(t, fx.check(t, bob, factor.SMS, "challenge", c.ID, "code", code), "M_FORBIDDEN")
		wantCode(t, fx.check(t, alice, factor.SMS, "challenge", c.ID, "code", code), "")
		wantCode(t, fx.check(t, alice, factor.SMS, "challenge", c.ID, "code", code), "M_FORBIDDEN") // never twice
		c, code = send()
		fx.clock.forward(5 * time.Minute)
		wantCode(t, fx.check(t, alice, factor.SMS, "challenge", c.ID, "code", code), "M_FORBIDDEN") // too late
	})
}

// TestSMSTries shows that five wrong codes spend a challenge, whatever becomes of the account's own limit.
func TestSMSTries(t *testing.T) {
	each(t, factor.Config{}, func(t *testing.T, fx *fixture) {
		e, err := fx.BeginEnrol(t.Context(), alice, factor.SMS, "Phone", "13800138000", here)
		if err != nil {
			t.Fatal(err)
		}
		_, code := fx.sms.last(t)
		for range 5 {
			_, err := fx.Confirm(t.Context(), alice, factor.SMS, e.ID, "", url.Values{"challenge": {e.Challenge.ID}, "code": {"x"}})
			wantCode(t, err, "M_FORBIDDEN")
		}
		fx.clock.forward(time.Minute)
		_, err = fx.Confirm(t.Context(), alice, factor.SMS, e.ID, "", url.Values{"challenge": {e.Challenge.ID}, "code": {code}})
		wantCode(t, err, "M_FORBIDDEN")
	})
}

// TestSMSLimits shows the limits of a day: by number, account, address and in all.
func TestSMSLimits(t *testing.T) {
	sms := func(g *gateway, n, a, ip, all int) factor.Config {
		return factor.Config{SMS: &factor.SMSConfig{URL: g.URL, Body: "{{.Text}}", PerNumberDay: n, PerAccountDay: a, PerAddressDay: ip, PerDay: all, Countries: []string{"+86"}}}
	}
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		for i, tc := range []struct {
			name           string
			n, a, ip, all  int
			user           func(i int) id.UserID
			number         func(i int) string
			from           func(i int) factor.From
			sent, atTheEnd int
		}{
			{"number", 2, 0, 0, 0, otherUser, sameNumber, otherPlace, 2, 1},
			{"account", 0, 2, 0, 0, sameUser, otherNumber, otherPlace, 2, 1},
			{"address", 0, 0, 2, 0, otherUser, otherNumber, samePlace, 2, 1},
			{"all", 0, 0, 0, 2, otherUser, otherNumber, otherPlace, 2, 1},
		} {
			t.Run(tc.name, func(t *testing.T) {
				if cfg.URL == "" {
					cfg.DataDir = t.TempDir()
				} else {
					cfg.URL = storetest.Postgres(t)
				}
				g := newGateway(t)
				fx := open(t, cfg, sms(g, tc.n, tc.a, tc.ip, tc.all), nil)
				sent := 0
				for j := range 4 {
					_, err := fx.BeginEnrol(t.Context(), tc.user(j), factor.SMS, "Phone", tc.number(j), tc.from(j))
					if err == nil {
						sent++
					} else if !mxerr.Is(err, "M_LIMIT_EXCEEDED") {
						t.Fatal(err)
					}
					fx.clock.forward(2 * time.Minute)
				}
				if sent != tc.sent || g.count() != tc.sent {
					t.Errorf("%d were sent, %d came, want %d", sent, g.count(), tc.sent)
				}
				fx.clock.forward(24 * time.Hour)
				if _, err := fx.BeginEnrol(t.Context(), tc.user(i), factor.SMS, "Phone", tc.number(i), tc.from(i)); err != nil {
					t.Errorf("the next day: %v", err)
				}
				_, err := fx.BeginEnrol(t.Context(), "@carol:test", factor.SMS, "Phone", "+4915112345678", here)
				wantCode(t, err, "M_INVALID_PARAM") // no country of ours
			})
		}
	})
}

func sameUser(int) id.UserID    { return alice }
func otherUser(i int) id.UserID { return id.UserID(fmt.Sprintf("@u%d:test", i)) }
func sameNumber(int) string     { return "13800138000" }
func otherNumber(i int) string  { return fmt.Sprintf("1380013800%d", i) }
func samePlace(int) factor.From { return here }
func otherPlace(i int) factor.From {
	return factor.From{IP: netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})}
}

// TestSMSGatewayFails shows that neither the code nor the number reaches the log or the error.
func TestSMSGatewayFails(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		var log strings.Builder
		fx := open(t, cfg, factor.Config{}, &log)
		for i, set := range []func(){
			func() { fx.sms.status = 500 },
			func() { fx.sms.status, fx.sms.answer = 200, `{"Code":"isv.BUSINESS_LIMIT_CONTROL"}` },
			func() { fx.sms.Close() },
		} {
			set()
			_, err := fx.BeginEnrol(t.Context(), otherUser(i), factor.SMS, "Phone", otherNumber(i), here)
			if e := mxerr.As(err); e == nil || e.Status != http.StatusBadGateway {
				t.Fatalf("case %d: %v", i, err)
			}
			if i < 2 {
				_, code := fx.sms.last(t)
				if strings.Contains(log.String(), code) || strings.Contains(err.Error(), code) {
					t.Errorf("the code is in the log: %s", &log)
				}
			}
		}
		if strings.Contains(log.String(), "1380013800") || !strings.Contains(log.String(), "SMS gateway") {
			t.Errorf("log: %s", &log)
		}
	})
}

func TestCanonicalNumber(t *testing.T) {
	for typed, want := range map[string]string{
		"13800138000": "+8613800138000", "+86 138 0013 8000": "+8613800138000", "0086-138-0013-8000": "+8613800138000", "8613800138000": "+8613800138000",
		"１３８００１３８０００": "+8613800138000", "＋86 13800138000": "+8613800138000", "+49 (151) 1234-5678": "+4915112345678", "0044 7700 900123": "+447700900123",
		"+852 9123 4567": "+85291234567", "12800138000": "", "+86 10 6552 9988": "", "1380013800": "", "": "", "+": "", "+0123456789": "", "abc": "",
		"+1234567890123456": "", "+4915112345678;x": "", "138001380001": "",
	} {
		got, err := factor.CanonicalNumber(typed)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q gives %q, %v; want %q", typed, got, err, want)
		}
	}
}

func TestEmail(t *testing.T) {
	each(t, factor.Config{}, func(t *testing.T, fx *fixture) {
		_, err := fx.BeginEnrol(t.Context(), alice, factor.Email, "Mail", "not an address", here)
		wantCode(t, err, "M_INVALID_PARAM")
		e, err := fx.BeginEnrol(t.Context(), alice, factor.Email, "Mail", "Alice@Example.org", here)
		if err != nil {
			t.Fatal(err)
		}
		var mails []store.Mail
		if err := fx.store.Write(t.Context(), func(tx *store.Tx) (err error) {
			mails, err = tx.ClaimMails(fx.clock.now().UnixMilli(), fx.clock.now().UnixMilli()+1, 10)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if len(mails) != 1 || mails[0].To != "alice@example.org" || mails[0].Kind != "sign_in_code" || e.Challenge.To != "a•••@example.org" {
			t.Fatalf("got %+v, shown as %q", mails, e.Challenge.To)
		}
		out, err := fx.Confirm(t.Context(), alice, factor.Email, e.ID, "", url.Values{"challenge": {e.Challenge.ID}, "code": {sixDigits.FindString(string(mails[0].Data))}})
		if err != nil || !slices.Equal(out.AMR, []string{"mail"}) {
			t.Fatalf("got %+v %v", out, err)
		}
	})
}

func TestRecovery(t *testing.T) {
	each(t, factor.Config{}, func(t *testing.T, fx *fixture) {
		if _, err := fx.NewRecoveryCodes(t.Context(), alice); !mxerr.Is(err, "M_NOT_FOUND") {
			t.Fatalf("without a factor: %v", err)
		}
		_, codes := fx.totp(t, alice)
		wantCode(t, fx.check(t, bob, factor.Recovery, "code", codes[0]), "M_FORBIDDEN")
		wantCode(t, fx.check(t, alice, factor.Recovery, "code", strings.ToUpper(strings.ReplaceAll(codes[0], "-", " "))), "")
		wantCode(t, fx.check(t, alice, factor.Recovery, "code", codes[0]), "M_FORBIDDEN")
		if _, left, _ := fx.List(t.Context(), alice); left != 9 {
			t.Errorf("%d codes are left", left)
		}
		fresh, err := fx.NewRecoveryCodes(t.Context(), alice)
		if err != nil || len(fresh) != 10 {
			t.Fatal(fresh, err)
		}
		wantCode(t, fx.check(t, alice, factor.Recovery, "code", codes[1]), "M_FORBIDDEN")
		wantCode(t, fx.check(t, alice, factor.Recovery, "code", fresh[1]), "")
		if err := fx.Remove(t.Context(), alice, fx.first(t, alice), factor.Passed{}); err != nil {
			t.Fatal(err)
		}
		wantCode(t, fx.check(t, alice, factor.Recovery, "code", fresh[2]), "M_FORBIDDEN") // they went with the last factor
	})
}

func (fx *fixture) first(t *testing.T, user id.UserID) string {
	t.Helper()
	list, _, err := fx.List(t.Context(), user)
	if err != nil || len(list) == 0 {
		t.Fatal(list, err)
	}
	return list[0].ID
}

// TestRemember covers remembered browsers: bound to their account, limited in time and number, revocable, and no stronger than
// what was proved.
func TestRemember(t *testing.T) {
	rules := []factor.Rule{
		{Users: []string{"admin*"}, Require: []string{"webauthn"}, RememberDays: 30},
		{Users: []string{"never"}, Require: []string{"any"}},
		{Require: []string{"any"}, RememberDays: 7},
	}
	each(t, factor.Config{Rules: rules}, func(t *testing.T, fx *fixture) {
		for _, u := range []id.UserID{alice, bob, "@never:test", "@admin1:test"} {
			fx.totp(t, u)
		}
		token, err := fx.Remember(t.Context(), alice, []string{"otp"}, 7*24*time.Hour, here)
		if err != nil {
			t.Fatal(err)
		}
		none := func(user id.UserID, p factor.Passed) bool {
			t.Helper()
			o, err := fx.Owes(t.Context(), user, p)
			if err != nil {
				t.Fatal(err)
			}
			return o.None
		}
		pwd := []string{"pwd"}
		if !none(alice, factor.Passed{AMR: pwd, Remembered: token}) {
			t.Error("a remembered browser is asked")
		}
		if none(alice, factor.Passed{AMR: pwd}) || none(alice, factor.Passed{AMR: pwd, Remembered: "mhd_x"}) {
			t.Error("a browser that was not remembered is not asked")
		}
		if none(alice, factor.Passed{AMR: pwd, Remembered: token, Fresh: true}) {
			t.Error("a step-up was satisfied by a remembered browser")
		}
		if none(bob, factor.Passed{AMR: pwd, Remembered: token}) {
			t.Error("the cookie of another user counts")
		}
		for user, amr := range map[id.UserID]string{"@never:test": "otp", "@admin1:test": "otp"} {
			other, err := fx.Remember(t.Context(), user, []string{amr}, 24*time.Hour, here)
			if err != nil {
				t.Fatal(err)
			}
			if none(user, factor.Passed{AMR: pwd, Remembered: other}) {
				t.Errorf("%s: a remembered browser counts", user)
			}
		}
		fx.clock.forward(7*24*time.Hour + time.Second)
		if none(alice, factor.Passed{AMR: pwd, Remembered: token}) {
			t.Error("a browser is remembered for ever")
		}
		var tokens []string
		for range 12 {
			fx.clock.forward(time.Second)
			token, err := fx.Remember(t.Context(), alice, []string{"otp"}, 7*24*time.Hour, here)
			if err != nil {
				t.Fatal(err)
			}
			tokens = append(tokens, token)
		}
		if list, err := fx.Remembered(t.Context(), alice); err != nil || len(list) != 10 {
			t.Fatalf("%d browsers are remembered: %v", len(list), err)
		}
		if none(alice, factor.Passed{AMR: pwd, Remembered: tokens[1]}) || !none(alice, factor.Passed{AMR: pwd, Remembered: tokens[2]}) {
			t.Error("the oldest ones should have made room")
		}
		if err := fx.Forget(t.Context(), bob, ""); err != nil {
			t.Fatal(err)
		}
		list, _ := fx.Remembered(t.Context(), alice)
		wantCode(t, fx.Forget(t.Context(), bob, list[0].ID), "M_NOT_FOUND")
		if err := fx.Forget(t.Context(), alice, list[0].ID); err != nil {
			t.Fatal(err)
		}
		if none(alice, factor.Passed{AMR: pwd, Remembered: tokens[11]}) || !none(alice, factor.Passed{AMR: pwd, Remembered: tokens[10]}) {
			t.Error("one browser should have been forgotten")
		}
		e, err := fx.BeginEnrol(t.Context(), alice, factor.TOTP, "Second", "", here)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fx.Confirm(t.Context(), alice, factor.TOTP, e.ID, "", url.Values{"code": {fx.code(t, e.Secret, 0)}}); err != nil {
			t.Fatal(err)
		}
		if err := fx.Remove(t.Context(), alice, fx.first(t, alice), factor.Passed{}); err != nil {
			t.Fatal(err)
		}
		if none(alice, factor.Passed{AMR: pwd, Remembered: tokens[10]}) {
			t.Error("removing a factor should forget all browsers")
		}
	})
}

func TestAppPasswords(t *testing.T) {
	rules := []factor.Rule{{Users: []string{"alice"}, Require: []string{"any"}, AppPasswords: true}, {Roles: []string{"locked-down"}, Require: []string{"any"}}}
	each(t, factor.Config{Rules: rules, AppPasswords: true}, func(t *testing.T, fx *fixture) {
		ok := func(user id.UserID, password string) bool {
			t.Helper()
			ok, err := fx.AppPassword(t.Context(), user, password, here.IP)
			if err != nil {
				t.Fatal(err)
			}
			return ok
		}
		password, err := fx.NewAppPassword(t.Context(), alice, "FluffyChat", here.IP)
		if err != nil {
			t.Fatal(err)
		}
		if !ok(alice, password) || !ok(alice, strings.ReplaceAll(password, "-", " ")) || ok(bob, password) || ok(alice, password[:23]) {
			t.Error("an app password passes where it should not, or does not where it should")
		}
		list, err := fx.AppPasswords(t.Context(), alice)
		if err != nil || len(list) != 1 || list[0].Used == 0 || list[0].Name != "FluffyChat" {
			t.Fatalf("%+v %v", list, err)
		}
		wantCode(t, fx.RevokeAppPassword(t.Context(), bob, list[0].ID), "M_NOT_FOUND")
		if err := fx.RevokeAppPassword(t.Context(), alice, list[0].ID); err != nil {
			t.Fatal(err)
		}
		if ok(alice, password) {
			t.Error("a revoked app password passes")
		}
		password, err = fx.NewAppPassword(t.Context(), bob, "Old app", here.IP)
		if err != nil {
			t.Fatal(err)
		}
		fx.roles[bob] = []string{"locked-down"}
		if ok(bob, password) {
			t.Error("an app password passes although its owner may not have any now")
		}
		_, err = fx.NewAppPassword(t.Context(), bob, "Other app", here.IP)
		wantCode(t, err, "M_FORBIDDEN")
		_, err = fx.NewAppPassword(t.Context(), alice, " ", here.IP)
		wantCode(t, err, "M_INVALID_PARAM")
	})
}

func TestRenameRemoveReset(t *testing.T) {
	rules := []factor.Rule{{Users: []string{"alice"}, Require: []string{"any"}}}
	each(t, factor.Config{Rules: rules}, func(t *testing.T, fx *fixture) {
		secret, codes := fx.totp(t, alice)
		only := fx.first(t, alice)
		if err := fx.Rename(t.Context(), alice, only, "工作手机"); err != nil {
			t.Fatal(err)
		}
		if list, _, _ := fx.List(t.Context(), alice); list[0].Name != "工作手机" {
			t.Errorf("it is called %q", list[0].Name)
		}
		wantCode(t, fx.Rename(t.Context(), alice, only, "a\x00b"), "M_INVALID_PARAM")
		wantCode(t, fx.Rename(t.Context(), bob, only, "mine"), "M_NOT_FOUND")
		wantCode(t, fx.Remove(t.Context(), bob, only, factor.Passed{}), "M_NOT_FOUND")
		wantCode(t, fx.Remove(t.Context(), alice, only, factor.Passed{}), "M_FORBIDDEN") // the policy wants one
		if _, err := fx.Reset(t.Context(), "@nobody:test"); !mxerr.Is(err, "M_NOT_FOUND") {
			t.Errorf("reset of nobody: %v", err)
		}
		fx.user(t, alice)
		if n, err := fx.Reset(t.Context(), alice); err != nil || n != 1 {
			t.Fatal(n, err)
		}
		wantCode(t, fx.check(t, alice, factor.TOTP, "code", fx.code(t, secret, 0)), "M_FORBIDDEN")
		wantCode(t, fx.check(t, alice, factor.Recovery, "code", codes[0]), "M_FORBIDDEN")
	})
}

// TestSweep shows that what has expired goes, and what belonged to an account that is gone.
func TestSweep(t *testing.T) {
	each(t, factor.Config{}, func(t *testing.T, fx *fixture) {
		fx.user(t, alice)
		fx.user(t, bob)
		fx.totp(t, alice)
		fx.totp(t, bob)
		if _, err := fx.BeginEnrol(t.Context(), alice, factor.TOTP, "Not proved", "", here); err != nil {
			t.Fatal(err)
		}
		fx.clock.forward(time.Hour)
		var all []store.Factor
		if err := fx.store.Write(t.Context(), func(tx *store.Tx) error {
			if _, err := tx.Exec(`UPDATE users SET deactivated = 1 WHERE user_id = $1`, bob); err != nil {
				return err
			}
			if err := tx.SweepFactors(fx.clock.now().UnixMilli()); err != nil {
				return err
			}
			for _, u := range []id.UserID{alice, bob} {
				list, err := tx.Factors(u)
				if err != nil {
					return err
				}
				all = append(all, list...)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if len(all) != 1 || all[0].User != alice || !all[0].Active {
			t.Errorf("left: %+v", all)
		}
	})
}

// user makes the row of an account.
func (fx *fixture) user(t *testing.T, user id.UserID) {
	t.Helper()
	if err := fx.store.Write(t.Context(), func(tx *store.Tx) error {
		_, err := tx.InsertUser(store.User{ID: user, Localpart: user.Localpart()})
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// TestAudit shows that every act is in the audit log and no secret is.
func TestAudit(t *testing.T) {
	each(t, factor.Config{AppPasswords: true}, func(t *testing.T, fx *fixture) {
		secret, codes := fx.totp(t, alice)
		code := fx.code(t, secret, 0)
		wantCode(t, fx.check(t, alice, factor.TOTP, "code", "999999"), "M_FORBIDDEN")
		wantCode(t, fx.check(t, alice, factor.TOTP, "code", code), "")
		wantCode(t, fx.check(t, alice, factor.Recovery, "code", codes[0]), "")
		token, err := fx.Remember(t.Context(), alice, []string{"otp"}, time.Hour, here)
		app, err2 := fx.NewAppPassword(t.Context(), alice, "Old app", here.IP)
		e, err3 := fx.BeginEnrol(t.Context(), alice, factor.SMS, "Phone", "13800138000", here)
		err4 := fx.Rename(t.Context(), alice, fx.first(t, alice), "New name")
		err5 := fx.Remove(t.Context(), alice, fx.first(t, alice), factor.Passed{})
		if err := errors.Join(err, err2, err3, err4, err5); err != nil {
			t.Fatal(err)
		}
		_, sms := fx.sms.last(t)
		var all strings.Builder
		if err := fx.store.Read(t.Context(), func(tx *store.Tx) error {
			list, err := tx.AuditEntries(store.AuditFilter{}, true, 100)
			for _, e := range list {
				fmt.Fprintf(&all, "%s %s %s %s %s\n", e.Action, e.Result, e.Actor, e.Target, e.Body)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			"factor.totp.enrolled ok @alice:test", "factor.totp.used refused", "factor.totp.used ok @alice:test", "factor.recovery.used ok", "factor.browser.remembered ok",
			"factor.app_password.made ok", "factor.sms.sent ok", "factor.totp.renamed ok", "factor.totp.removed ok",
		} {
			if !strings.Contains(all.String(), want) {
				t.Errorf("there is no entry %q in\n%s", want, &all)
			}
		}
		for _, no := range []string{secret, code, codes[0], codes[1], token, app, sms, "13800138000", e.Challenge.ID} {
			if strings.Contains(all.String(), no) {
				t.Errorf("the audit log holds %q:\n%s", no, &all)
			}
		}
	})
}
