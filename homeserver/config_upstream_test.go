package homeserver_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestExampleProvider loads the identity provider that config.example.yaml shows in comments.
func TestExampleProvider(t *testing.T) {
	b, err := os.ReadFile("../config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "  # providers:\n")
	block, _, end := strings.Cut(rest, "  providers: []\n")
	if !ok || !end {
		t.Fatal("the example has no provider")
	}
	yaml := "server_name: example.org\npublic_url: https://matrix.example.org\nsso:\n  providers:\n" + regexp.MustCompile(`(?m)^  # `).ReplaceAllString(block, "  ")
	yaml = strings.Replace(yaml, "client_secret_file: /run/secrets/company_sso", `client_secret_file: ""`, 1)
	yaml = strings.Replace(yaml, `client_secret: ""`, "client_secret: x", 1)
	yaml = strings.Replace(yaml, `directory: "" `, "directory: corp ", 1)
	yaml = strings.Replace(yaml, `directory_id: ""`, `directory_id: "{{.objectGUID}}"`, 1)
	c, err := load(t, yaml)
	if err != nil {
		t.Fatal(err)
	}
	if p := c.SSO.Providers[0]; p.ID != "company" || len(p.Mapping.Roles) != 1 || len(p.OAuth2.Requests[0].JSON) != 1 {
		t.Errorf("read %+v", p)
	}
}

func TestProviderErrors(t *testing.T) {
	const good = "sso:\n  providers:\n    - id: kc\n      issuer: https://id.example.org\n      client_id: x\n      client_secret: y\n"
	if _, err := load(t, good); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, yaml, want string }{
		{"id", strings.Replace(good, "id: kc", "id: K C", 1), `moothall.yaml:3: sso.providers[0].id is "K C"`},
		{"type", good + "      type: openid", `moothall.yaml:7: sso.providers[0].type is "openid"`},
		{"twice", good + strings.TrimPrefix(good, "sso:\n  providers:\n"), "sso.providers[1].id is \"kc\""},
		{"issuer", strings.Replace(good, "https://id.example.org", "id.example.org", 1), "moothall.yaml:4: sso.providers[0].issuer"},
		{"no secret", strings.Replace(good, "      client_secret: y\n", "", 1), "client_secret is empty"},
		{"template", good + "      mapping:\n        localpart: \"{{.sub\"", "moothall.yaml:8: sso.providers[0].mapping.localpart is no template"},
		{"use", good + "      mapping:\n        email_use: always", "moothall.yaml:8: sso.providers[0].mapping.email_use"},
		{"conflict", good + "      on_conflict: merge", "moothall.yaml:7: sso.providers[0].on_conflict"},
		{"scopes", good + "      scopes: [email]", "must have openid"},
		{"role", good + "      mapping:\n        roles:\n          - {group: x, role: king}", "sso.providers[0].mapping.roles[0]"},
		{"unknown key", good + "      isuer: x", `unknown key "sso.providers[0].isuer"; did you mean "issuer"?`},
		{"saml", "sso:\n  providers:\n    - id: adfs\n      type: saml", "sso.providers[0].saml.metadata_url"},
		{"oauth2", "sso:\n  providers:\n    - id: x\n      type: oauth2\n      client_id: x\n      authorize_url: https://x.example/", "sso.providers[0].oauth2.requests"},
		{"directory", good + "      link_by: [directory]", "sso.providers[0].link_by"},
		{"timeout", good + "      timeout: 5m", "moothall.yaml:7: sso.providers[0].timeout"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := load(t, tc.yaml)
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got  %v\nwant %s", err, tc.want)
			}
		})
	}
}
