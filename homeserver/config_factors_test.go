package homeserver_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestExamplePolicy loads the policy that config.example.yaml shows in comments.
func TestExamplePolicy(t *testing.T) {
	b, err := os.ReadFile("../config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "  # policies:\n")
	block, _, end := strings.Cut(rest, "  policies: []\n")
	if !ok || !end {
		t.Fatal("the example has no policy")
	}
	c, err := load(t, "sso:\n  policies:\n"+regexp.MustCompile(`(?m)^  # `).ReplaceAllString(block, "  "))
	if err != nil {
		t.Fatal(err)
	}
	if p := c.FactorConfig().Rules[0]; p.Name != "administrators" || len(p.Roles) != 4 || p.GraceDays != 14 || p.Check() != nil {
		t.Errorf("read %+v", p)
	}
}

func TestFactorErrors(t *testing.T) {
	const sms = "sso:\n  factors:\n    kinds: [sms]\n    sms:\n      url: https://sms.example.org/{{query .Number}}\n      headers:\n        - {name: X-Key, value: secret}\n"
	c, err := load(t, sms)
	if err != nil {
		t.Fatal(err)
	}
	if f := c.FactorConfig(); f.SMS == nil || f.SMS.Headers["X-Key"] != "secret" || len(f.Allow) != 1 {
		t.Errorf("read %+v", f)
	}
	const policy = "sso:\n  policies:\n    - name: x\n"
	for _, tc := range []struct{ name, yaml, want string }{
		{"kind", "sso:\n  factors:\n    kinds: [retina]", `moothall.yaml:3: sso.factors.kinds has "retina"`},
		{"twice", "sso:\n  factors:\n    kinds: [totp, totp]", `moothall.yaml:3: sso.factors.kinds has "totp" twice`},
		{"no gateway", "sso:\n  factors:\n    kinds: [sms]", "sso.factors.kinds has sms, which needs sso.factors.sms.url"},
		{"no mail", "sso:\n  factors:\n    kinds: [email]", "which needs email.server"},
		{"template", strings.Replace(sms, ".Number", ".Numer", 1), "moothall.yaml:5: sso.factors.sms.url or what belongs to it cannot be used"},
		{"method", sms + "      method: DELETE", `method is "DELETE"`},
		{"expect", sms + "      expect: '('", "expect: error parsing regexp"},
		{"country", sms + "      countries: [86]", `moothall.yaml:8: sso.factors.sms.countries has "86"`},
		{"limit", sms + "      per_day: -1", "moothall.yaml:8: sso.factors.sms.per_day is -1"},
		{"header", strings.Replace(sms, ", value: secret", "", 1), "sso.factors.sms.headers[0] needs a name and a value"},
		{"no requirement", policy, "moothall.yaml:3: sso.policies[0] cannot be: require is missing"},
		{"requirement", policy + "      require: [fingers]", `sso.policies[0] cannot be: require has "fingers"`},
		{"not offered", policy + "      require: [email]", `moothall.yaml:4: sso.policies[0].require has "email", which sso.factors.kinds does not have`},
		{"network", policy + "      require: [any]\n      networks: [10.0.0/8]", `moothall.yaml:5: sso.policies[0].networks has "10.0.0/8"`},
		{"role", policy + "      require: [any]\n      roles: [king]", `moothall.yaml:5: sso.policies[0].roles has "king"`},
		{"grace", policy + "      require: [any]\n      grace_days: 1000", "grace_days must be from 0 to 365"},
		{"unknown key", policy + "      requires: [any]", `unknown key "sso.policies[0].requires"; did you mean "require"?`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := load(t, tc.yaml)
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got  %v\nwant %s", err, tc.want)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error tells a secret: %v", err)
			}
		})
	}
}
