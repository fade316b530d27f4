package factor_test

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/sso/factor"
)

var office = netip.MustParsePrefix("10.0.0.0/8")

// TestPolicies looks at what is owed by whom, by rule and by what was proved.
func TestPolicies(t *testing.T) {
	rules := []factor.Rule{
		{Name: "admins", Roles: []string{"admin", "security"}, Require: []string{"cryptographic"}, RememberDays: 1},
		{Name: "robots", Users: []string{"svc-*", "@pipe:test"}, Require: []string{"none"}},
		{Name: "own provider", Ways: []string{"sso:weak"}, Require: []string{"any"}, IgnoreUpstream: true},
		{Name: "outside", ExceptNetworks: []netip.Prefix{office}, Users: []string{"field*"}, Require: []string{"totp", "webauthn"}},
		{Name: "field", Networks: []netip.Prefix{office}, Users: []string{"field*"}, Require: []string{"optional"}},
		{Name: "other ways", Ways: []string{"sso:*"}, Users: []string{"sso*"}, Require: []string{"any"}},
	}
	in, out := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("203.0.113.9")
	pwd := []string{"pwd"}
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		fx := open(t, cfg, factor.Config{Rules: rules}, nil)
		fx.roles["@boss:test"] = []string{"admin"}
		fx.roles["@boss2:test"] = []string{"auditor", "security"}
		for _, u := range []id.UserID{"@boss2:test", "@field2:test", "@sso2:test", "@svc-x:test", bob} {
			fx.totp(t, u)
		}
		mfa := &factor.Upstream{Provider: "idp", MFA: true}
		key := &factor.Upstream{Provider: "idp", AMR: []string{"pwd", "hwk"}}
		choose := []factor.Kind{factor.TOTP, factor.Recovery}
		all := []factor.Kind{factor.WebAuthn, factor.TOTP, factor.SMS, factor.Email}
		passkey := []factor.Kind{factor.WebAuthn}
		for _, tc := range []struct {
			name   string
			user   id.UserID
			p      factor.Passed
			rule   string
			none   bool
			choose []factor.Kind
			enrol  []factor.Kind
		}{
			{"nobody asks", alice, factor.Passed{Way: "password", AMR: pwd, IP: out}, "", true, nil, nil},
			{"who has one is asked", bob, factor.Passed{Way: "password", AMR: pwd, IP: out}, "", false, choose, nil},
			{"and has proved it", bob, factor.Passed{Way: "password", AMR: []string{"pwd", "otp"}}, "", true, nil, nil},
			{"or used a recovery code", bob, factor.Passed{Way: "password", AMR: []string{"pwd", "rec"}}, "", true, nil, nil},
			{"or proved it elsewhere", bob, factor.Passed{Way: "sso:idp", Upstream: mfa}, "", true, nil, nil},
			{"an administrator has none", "@boss:test", factor.Passed{Way: "password", AMR: pwd}, "admins", false, nil, passkey},
			{"an administrator signs in by passkey", "@boss:test", factor.Passed{Way: "passkey", AMR: []string{"hwk", "user"}}, "admins", true, nil, nil},
			{"elsewhere, without a key", "@boss:test", factor.Passed{Way: "sso:idp", Upstream: mfa}, "admins", false, nil, passkey},
			{"elsewhere, with a key", "@boss:test", factor.Passed{Way: "sso:idp", Upstream: key}, "admins", true, nil, nil},
			{"elsewhere, phishing-resistant", "@boss:test", factor.Passed{Way: "sso:idp", Upstream: &factor.Upstream{ACR: "phr"}}, "admins", true, nil, nil},
			{"an app is not enough: proved first", "@boss2:test", factor.Passed{Way: "password", AMR: pwd}, "admins", false, choose, nil},
			{"then a passkey is enrolled", "@boss2:test", factor.Passed{Way: "password", AMR: []string{"pwd", "otp"}}, "admins", false, nil, passkey},
			{"so it is by a recovery code", "@boss2:test", factor.Passed{Way: "password", AMR: []string{"pwd", "rec"}}, "admins", false, nil, passkey},
			{"robots", "@svc-x:test", factor.Passed{Way: "password", AMR: pwd}, "robots", true, nil, nil},
			{"robots by full id", "@pipe:test", factor.Passed{Way: "password", AMR: pwd}, "robots", true, nil, nil},
			{"a provider that is not trusted", bob, factor.Passed{Way: "sso:weak", Upstream: mfa}, "own provider", false, choose, nil},
			{"outside", "@field1:test", factor.Passed{Way: "password", AMR: pwd, IP: out}, "outside", false, nil, []factor.Kind{factor.WebAuthn, factor.TOTP}},
			{"outside, a weak one", "@field1:test", factor.Passed{Way: "password", AMR: []string{"pwd", "sms"}, IP: out}, "outside", false, nil, []factor.Kind{factor.WebAuthn, factor.TOTP}},
			{"at the office", "@field1:test", factor.Passed{Way: "password", AMR: pwd, IP: in}, "field", true, nil, nil},
			{"at the office, mapped address", "@field1:test", factor.Passed{Way: "password", AMR: pwd, IP: netip.MustParseAddr("::ffff:10.1.2.3")}, "field", true, nil, nil},
			{"at the office, has one", "@field2:test", factor.Passed{Way: "password", AMR: pwd, IP: in}, "field", false, choose, nil},
			{"without an address", "@field1:test", factor.Passed{Way: "password", AMR: pwd}, "outside", false, nil, []factor.Kind{factor.WebAuthn, factor.TOTP}},
			{"by way", "@sso1:test", factor.Passed{Way: "sso:idp"}, "other ways", false, nil, all},
			{"by another way", "@sso1:test", factor.Passed{Way: "password", AMR: pwd}, "", true, nil, nil},
		} {
			t.Run(tc.name, func(t *testing.T) {
				o, err := fx.Owes(t.Context(), tc.user, tc.p)
				if err != nil {
					t.Fatal(err)
				}
				if o.Rule != tc.rule || o.None != tc.none || !reflect.DeepEqual(o.Choose, tc.choose) || !reflect.DeepEqual(o.Enrol, tc.enrol) {
					t.Errorf("got %+v", o)
				}
				want := ""
				switch {
				case len(tc.choose) > 0:
					want = "/signin/factor"
				case !tc.none:
					want = "/signin/factor/enrol"
				}
				if o.Next() != want || o.MayPass() != tc.none {
					t.Errorf("it goes on at %q (may pass: %v), want %q", o.Next(), o.MayPass(), want)
				}
				err = fx.Gate(t.Context(), tc.user, tc.p)
				if (err == nil) != tc.none || err != nil && !mxerr.Is(err, "M_FORBIDDEN") {
					t.Errorf("without pages: %v", err)
				}
			})
		}
	})
}

// TestGrace shows that enrolment can be put off for a while, counted from when it was first asked for.
func TestGrace(t *testing.T) {
	rules := []factor.Rule{{Name: "all", Require: []string{"totp"}, GraceDays: 7}}
	each(t, factor.Config{Rules: rules}, func(t *testing.T, fx *fixture) {
		p := factor.Passed{Way: "password", AMR: []string{"pwd"}, IP: here.IP}
		owes := func(node int) factor.Owed {
			t.Helper()
			o, err := fx.nodes[node%len(fx.nodes)].Owes(t.Context(), alice, p)
			if err != nil {
				t.Fatal(err)
			}
			return o
		}
		began := fx.clock.now()
		for i := range 7 {
			if o := owes(i); !o.MayPass() || o.None || o.Next() != "/signin/factor/enrol" || !o.GraceUntil.Equal(began.Add(7*24*time.Hour)) {
				t.Fatalf("day %d: %+v", i, o)
			}
			wantCode(t, fx.Gate(t.Context(), alice, p), "") // old clients are let in meanwhile
			fx.clock.forward(24 * time.Hour)
		}
		if o := owes(1); o.MayPass() || !o.GraceUntil.IsZero() {
			t.Fatalf("after the grace period: %+v", o)
		}
		wantCode(t, fx.Gate(t.Context(), alice, p), "M_FORBIDDEN")
		fx.totp(t, alice)
		if o := owes(0); o.MayPass() || len(o.Choose) == 0 {
			t.Fatalf("once enrolled: %+v", o)
		}
	})
}

func TestRuleCheck(t *testing.T) {
	for _, bad := range []factor.Rule{
		{}, {Require: []string{"any", "totp"}}, {Require: []string{"retina"}}, {Require: []string{"any"}, GraceDays: -1}, {Require: []string{"any"}, RememberDays: 366},
	} {
		if bad.Check() == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
	for _, bad := range []factor.SMSConfig{
		{}, {URL: "ftp://x"}, {URL: "https://x/{{.Nothing}}"}, {URL: "https://x", Body: "{{"}, {URL: "https://x", Method: "DELETE"}, {URL: "https://x", Expect: "("},
	} {
		if bad.Check() == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}
