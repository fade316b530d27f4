package upstream_test

import (
	"bytes"
	"encoding/base64"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/sso/upstream"
	"github.com/moothall/moothall/tests/process"
)

// samlServer registers a server with Keycloak as a SAML service provider by the server's own metadata, as an administrator does.
func (k *keycloak) samlServer(sign bool, change func(c map[string]any)) (*hstest.Server, string) {
	k.t.Helper()
	return k.samlServerWith(sign, false, change)
}

func (k *keycloak) samlServerWith(sign, encrypted bool, change func(c map[string]any)) (*hstest.Server, string) {
	k.t.Helper()
	address := process.FreeAddress(k.t)
	base := "http://" + address
	hs := hstest.Start(k.t, func(c *homeserver.Config) {
		c.Listen[0].Address, c.PublicURL = address, base
		c.SSO.RedirectsAllowed = []string{"http://app.example/"}
		c.SSO.Providers = []homeserver.SSOProvider{{
			ID: "adfs", Type: upstream.TypeSAML, Name: "ADFS", OnLogout: "soft",
			SAML: upstream.SAML{MetadataURL: k.realm + "/protocol/saml/descriptor", SignRequests: sign, Encrypted: encrypted, NameIDFormat: "persistent"},
			Mapping: upstream.Mapping{
				Localpart: "{{slug .username}}", DisplayName: "{{.givenName}} {{.surname}}", Email: `{{index . "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/emailaddress"}}`,
				EmailVerified: "true", Groups: "member",
			},
		}}
	})
	resp, err := http.Get(base + "/_moothall/upstream/adfs/saml/metadata")
	if err != nil {
		k.t.Fatal(err)
	}
	metadata, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || resp.StatusCode != 200 {
		k.t.Fatalf("our metadata: %s %s", resp.Status, metadata)
	}
	// Keycloak reads the metadata and says what client that makes.
	req, err := http.NewRequest("POST", strings.Replace(k.realm, "/realms/", "/admin/realms/", 1)+"/client-description-converter", bytes.NewReader(metadata))
	if err != nil {
		k.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+k.token)
	req.Header.Set("Content-Type", "application/xml")
	resp, err = http.DefaultClient.Do(req)
	if err != nil {
		k.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var client map[string]any
	if err := decode(resp.Body, &client); err != nil || client["clientId"] != base+"/_moothall/upstream/adfs/saml/metadata" {
		k.t.Fatalf("Keycloak does not read our metadata: %s %v %v", resp.Status, client, err)
	}
	attribute := func(property, name string) map[string]any {
		return map[string]any{"name": name, "protocol": "saml", "protocolMapper": "saml-user-property-mapper", "config": map[string]string{
			"user.attribute": property, "attribute.name": name, "attribute.nameformat": "Basic", "friendly.name": property,
		}}
	}
	client["protocolMappers"] = []any{
		attribute("username", "username"), attribute("firstName", "givenName"), attribute("lastName", "surname"),
		attribute("email", "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/emailaddress"),
		map[string]any{"name": "groups", "protocol": "saml", "protocolMapper": "saml-group-membership-mapper", "config": map[string]string{
			"attribute.name": "member", "attribute.nameformat": "Basic", "single": "true", "full.path": "true",
		}},
	}
	if change != nil {
		change(client)
	}
	clientID, _ := k.admin("POST", "/clients", client)
	k.t.Cleanup(func() { k.admin("DELETE", "/clients/"+clientID, nil) })
	return hs, base
}

func attributes(c map[string]any) map[string]any { return c["attributes"].(map[string]any) }

// TestSAMLKeycloak signs in at Keycloak by SAML, with signed assertions and with signed responses and requests.
func TestSAMLKeycloak(t *testing.T) {
	k := findKeycloak(t)
	for _, tc := range []struct {
		name   string
		sign   bool
		change func(c map[string]any)
	}{
		{"signed assertion", false, func(c map[string]any) {
			attributes(c)["saml.assertion.signature"], attributes(c)["saml.server.signature"], attributes(c)["saml.encrypt"] = "true", "false", "false"
			attributes(c)["saml.client.signature"] = "false"
		}},
		{"signed response and assertion, signed request", true, func(c map[string]any) {
			attributes(c)["saml.assertion.signature"], attributes(c)["saml.server.signature"], attributes(c)["saml.encrypt"] = "true", "true", "false"
			attributes(c)["saml.client.signature"] = "true"
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k.t = t
			name := unique("shi")
			k.user(name, nil)
			_, base := k.samlServer(tc.sign, tc.change)
			b := newBrowser(t)
			p := b.get(base + "/signin/upstream/adfs")
			p = b.submit(p, 0, "username", name, "password", "secret-"+name)
			if len(p.forms) != 1 || p.forms[0].values.Get("SAMLResponse") == "" {
				t.Fatalf("no response: %s %.1000s", p.at, p.body)
			}
			response := p.forms[0].values
			p = b.submit(p, 0)
			if p.at.String() != base+"/account" || !strings.Contains(p.body, "@"+name+":test") {
				t.Fatalf("ended at %s: %d %.1500s", p.at, p.status, p.body)
			}

			// The same response again, in this browser and in another one.
			acs := base + "/_moothall/upstream/adfs/saml/acs"
			for _, who := range []*browser{b, newBrowser(t)} {
				if p := who.read(who.c.PostForm(acs, response)); p.status != 400 || strings.Contains(p.body, "@"+name) {
					t.Errorf("replayed: %d at %s %.300s", p.status, p.at, p.body)
				}
			}
			// A response for another person's attempt: that person's browser gets nothing by it.
			victim := newBrowser(t)
			q := victim.get(base + "/signin/upstream/adfs")
			q = victim.submit(q, 0, "username", name, "password", "secret-"+name)
			thief := newBrowser(t)
			thief.get(base + "/signin/upstream/adfs")
			if p := thief.read(thief.c.PostForm(acs, q.forms[0].values)); p.status != 400 || strings.Contains(p.body, "@"+name) {
				t.Errorf("another browser: %d at %s %.300s", p.status, p.at, p.body)
			}
			for what, change := range map[string]func(xml string) string{
				"another name":     func(s string) string { return strings.ReplaceAll(s, name, "administrator") },
				"no signature":     cutSignatures,
				"another audience": func(s string) string { return strings.ReplaceAll(s, "/saml/metadata", "/saml/metadat") },
				"signature with SHA-1": func(s string) string {
					return strings.ReplaceAll(s, "2001/04/xmldsig-more#rsa-sha256", "2000/09/xmldsig#rsa-sha1")
				},
				"no XML": func(string) string { return "<a" },
			} {
				one := newBrowser(t)
				p := one.get(base + "/signin/upstream/adfs")
				p = one.submit(p, 0, "username", name, "password", "secret-"+name)
				v := p.forms[0].values
				raw, err := base64.StdEncoding.DecodeString(v.Get("SAMLResponse"))
				if err != nil {
					t.Fatal(err)
				}
				changed := change(string(raw))
				if changed == string(raw) {
					t.Errorf("%s: nothing was changed", what)
				}
				v.Set("SAMLResponse", base64.StdEncoding.EncodeToString([]byte(changed)))
				if p := one.submit(p, 0); p.status < 400 || strings.Contains(p.body, "@"+name) || strings.Contains(p.body, "@administrator") {
					t.Errorf("%s: %d at %s %.300s", what, p.status, p.at, p.body)
				}
			}

			// Signed out at Keycloak: it tells by the person's browser (SLO), and the session here ends.
			p = b.get(base + "/account")
			if p.status != 200 {
				t.Fatalf("the account page: %d", p.status)
			}
			p = b.get(k.realm + "/protocol/openid-connect/logout")
			if len(p.forms) == 0 {
				t.Fatalf("Keycloak's sign-out: %.1000s", p.body)
			}
			p = b.submit(p, 0)
			for range 4 { // forms that scripts would send
				if len(p.forms) == 1 && (p.forms[0].values.Has("SAMLRequest") || p.forms[0].values.Has("SAMLResponse")) {
					p = b.submit(p, 0)
				}
			}
			// Keycloak signs this like its responses; what nobody signed ends nothing.
			p = b.get(base + "/account")
			if in := strings.Contains(p.body, "@"+name+":test"); in != (tc.name == "signed assertion") {
				t.Errorf("signed in after the sign-out at Keycloak: %v, at %s", in, p.at)
			}
		})
	}
}

func base64Text(t *testing.T, text string) []byte {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func cutSignatures(s string) string {
	for _, tag := range []string{"dsig:Signature", "ds:Signature"} {
		for {
			from, to := strings.Index(s, "<"+tag+" "), strings.Index(s, "</"+tag+">")
			if from < 0 || to < from {
				break
			}
			s = s[:from] + s[to+len("</"+tag+">"):]
		}
	}
	return s
}

// TestSAMLWithoutRequest: what was not asked for is refused, and so are requests that nobody signed.
func TestSAMLWithoutRequest(t *testing.T) {
	k := findKeycloak(t)
	_, base := k.samlServer(false, nil)
	b := newBrowser(t)
	for name, v := range map[string]url.Values{
		"nothing":     {},
		"no base64":   {"SAMLResponse": {"<>"}},
		"no response": {"SAMLResponse": {base64.StdEncoding.EncodeToString([]byte(`<Response xmlns="urn:oasis:names:tc:SAML:2.0:protocol"/>`))}},
		"long state":  {"SAMLResponse": {"x"}, "RelayState": {strings.Repeat("x", 5000)}},
		"redirect":    {"SAMLResponse": {"x"}, "RelayState": {"https://evil.example/"}},
	} {
		p := b.read(b.c.PostForm(base+"/_moothall/upstream/adfs/saml/acs", v))
		if p.status != 400 || !strings.HasPrefix(p.at.String(), base+"/_moothall/signin/callback/adfs") || len(p.at.RawQuery) > 1000 {
			t.Errorf("%s: %d at %.200s", name, p.status, p.at)
		}
	}
	unsignedRequest := base64.StdEncoding.EncodeToString([]byte(`<samlp:LogoutRequest xmlns:samlp="urn:oasis:names:tc:SAML:2.0:protocol" xmlns:saml="urn:oasis:names:tc:SAML:2.0:assertion" ` +
		`ID="a" Version="2.0" IssueInstant="2030-01-01T00:00:00Z"><saml:Issuer>` + k.realm + `</saml:Issuer><saml:NameID>x</saml:NameID></samlp:LogoutRequest>`))
	if p := b.read(b.c.PostForm(base+"/_moothall/upstream/adfs/saml/slo", url.Values{"SAMLRequest": {unsignedRequest}})); p.status != 502 {
		t.Errorf("unsigned logout: %d", p.status)
	}
	if p := b.get(base + "/_moothall/upstream/adfs/saml/slo?SAMLRequest=" + url.QueryEscape(unsignedRequest)); p.status != 502 {
		t.Errorf("unsigned logout by redirect: %d", p.status)
	}
}
