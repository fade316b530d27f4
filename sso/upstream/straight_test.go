package upstream_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
)

// TestStraightThrough: with one provider and no passwords there is no page of ours before the provider's, passkeys or not.
func TestStraightThrough(t *testing.T) {
	k := findKeycloak(t)
	base, option := k.server(nil)
	hstest.Start(t, option, func(c *homeserver.Config) {
		c.SSO.PasswordLogin = false
		c.SSO.Factors.Kinds = []string{"webauthn", "totp"}
	})
	name := unique("wu")
	k.user(name, nil)
	b := newBrowser(t)
	p := b.get(base + "/account")
	if !strings.HasPrefix(p.at.String(), k.realm+"/") {
		t.Fatalf("not at Keycloak, but at %s", p.at)
	}
	p = b.submit(p, 0, "username", name, "password", "secret-"+name)
	if p.at.String() != base+"/account" || !strings.Contains(p.body, "@"+name+":test") {
		t.Fatalf("ended at %s: %d %.1500s", p.at, p.status, p.body)
	}
	// Another window of the same browser at Keycloak: signed in without a page at all.
	second := newBrowser(t)
	second.c.Jar = b.c.Jar
	for _, c := range b.c.Jar.Cookies(p.at) {
		if strings.Contains(c.Name, "mh_session") {
			c.MaxAge, c.Path = -1, "/"
			b.c.Jar.SetCookies(p.at, []*http.Cookie{c})
		}
	}
	if p := second.get(base + "/account/sessions"); p.at.String() != base+"/account/sessions" || !strings.Contains(p.body, "@"+name+":test") && p.status != 200 {
		t.Errorf("single sign-on ended at %s: %d", p.at, p.status)
	}
	// Whoever wants to choose still can.
	if p := newBrowser(t).get(base + "/signin?choose=1"); p.at.Host != strings.TrimPrefix(base, "http://") || p.status != 200 {
		t.Errorf("the choice is at %s: %d", p.at, p.status)
	}
}

// TestStepUpForAPage: a page that needs a second factor has the provider asked for it, of whoever signed in there without.
func TestStepUpForAPage(t *testing.T) {
	k := findKeycloak(t)
	base, option := k.server(nil)
	hs := hstest.Start(t, option, func(c *homeserver.Config) { c.Compliance.SecondFactor = true })
	b := newBrowser(t)
	p := b.submit(b.get(base+"/signin/upstream/kc"), 0, "username", "carol", "password", "carol-pw")
	if p.at.String() != base+"/account" {
		t.Fatalf("ended at %s: %d %.1500s", p.at, p.status, p.body)
	}
	giveRole(t, hs, "carol", "auditor")
	p = b.get(base + "/console/audit")
	if len(p.forms) > 0 && p.forms[0].id == "kc-form-login" { // Keycloak may want the password again
		p = b.submit(p, 0, "password", "carol-pw", "username", "carol")
	}
	if len(p.forms) == 0 || p.forms[0].id != "kc-otp-login-form" {
		t.Fatalf("Keycloak was not asked for a second factor: %s %d %.1500s", p.at, p.status, p.body)
	}
	p = b.submit(p, 0, "otp", totp("carolsecretcarolsecr", time.Now()))
	if !strings.HasPrefix(p.at.String(), base+"/console/audit") || p.status != 200 {
		t.Fatalf("ended at %s: %d %.1500s", p.at, p.status, p.body)
	}
	// The proof stays with the session: it is asked for once.
	if p := b.get(base + "/console/audit"); !strings.HasPrefix(p.at.String(), base+"/console/audit") || p.status != 200 {
		t.Errorf("the second time: %s %d", p.at, p.status)
	}
}

// TestGroupsOfAProvider: the groups that Keycloak tells have rooms, entered and left at sign-ins.
func TestGroupsOfAProvider(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) { groupsOfAProvider(t) })
	t.Run("postgres", func(t *testing.T) { groupsOfAProvider(t, hstest.Postgres(storetest.Postgres(t))) })
}

func groupsOfAProvider(t *testing.T, database ...hstest.Option) {
	k := findKeycloak(t)
	_, option := k.server(func(p *homeserver.SSOProvider) { p.SyncGroups = true })
	hs := hstest.Start(t, append(database, option, func(c *homeserver.Config) {
		c.Groups.Rules = []homeserver.GroupRule{{ID: "kc", Source: "kc", Kind: "group", NameRegexp: "/staff.*", Make: "room", Join: "force"}}
	})...)
	name := unique("zhao")
	userID := k.user(name, nil)
	rooms := func(c *hstest.Client) []string {
		var out []string
		joined, _ := c.Must(t, "GET", "", "/v3/joined_rooms")["joined_rooms"].([]any)
		for _, r := range joined {
			out = append(out, fmt.Sprint(c.Must(t, "GET", "", "/v3/rooms/%s/state/m.room.name", r)["name"]))
		}
		slices.Sort(out)
		return out
	}
	wait := func(what string, c *hstest.Client, want ...string) {
		t.Helper()
		for end := time.Now().Add(testkit.Patience); !slices.Equal(rooms(c), want); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: the rooms are %v, want %v", what, rooms(c), want)
			}
		}
	}
	c, p := newBrowser(t).legacySignIn(hs, name, "secret-"+name)
	if c == nil {
		t.Fatalf("not signed in: %s %d %.2000s", p.at, p.status, p.body)
	}
	wait("in a group there", c, "/staff/engineering")
	k.admin("PUT", "/users/"+userID+"/groups/"+k.group("/staff"), nil)
	k.admin("DELETE", "/users/"+userID+"/groups/"+k.group("/staff/engineering"), nil)
	again, _ := newBrowser(t).legacySignIn(hs, name, "secret-"+name)
	if again == nil {
		t.Fatal("not signed in again")
	}
	wait("moved there", again, "/staff")
}

// group is the id of a group by its path.
func (k *keycloak) group(path string) string {
	k.t.Helper()
	_, b := k.admin("GET", "/group-by-path"+path, nil)
	var g struct {
		ID string `json:"id"`
	}
	if err := decode(strings.NewReader(string(b)), &g); err != nil || g.ID == "" {
		k.t.Fatalf("the group %s: %s %v", path, b, err)
	}
	return g.ID
}

// TestSAMLEncrypted: assertions that Keycloak encrypts for the key of our metadata are read, by the way that is safe; where that is
// not switched on, and where it is done in another way, nobody signs in.
func TestSAMLEncrypted(t *testing.T) {
	k := findKeycloak(t)
	encrypt := func(data, key string) func(c map[string]any) {
		return func(c map[string]any) {
			a := attributes(c)
			a["saml.encrypt"], a["saml.assertion.signature"], a["saml.server.signature"], a["saml.client.signature"] = "true", "true", "false", "false"
			a["saml.encryption.algorithm"], a["saml.encryption.keyAlgorithm"] = data, key
			if strings.HasSuffix(key, "mgf1p") {
				a["saml.encryption.digestMethod"] = "http://www.w3.org/2000/09/xmldsig#sha1"
			}
		}
	}
	const xmlenc = "http://www.w3.org/2001/04/xmlenc#"
	for _, tc := range []struct {
		name, data, key string
		ok              bool
	}{
		{"AES-256-CBC", xmlenc + "aes256-cbc", xmlenc + "rsa-oaep-mgf1p", true},
		{"AES-128-GCM", "http://www.w3.org/2009/xmlenc11#aes128-gcm", xmlenc + "rsa-oaep-mgf1p", true},
		{"PKCS 1.5", xmlenc + "aes256-cbc", xmlenc + "rsa-1_5", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k.t = t
			name := unique("yan")
			k.user(name, nil)
			_, base := k.samlServerWith(false, true, encrypt(tc.data, tc.key))
			b := newBrowser(t)
			p := b.get(base + "/signin/upstream/adfs")
			p = b.submit(p, 0, "username", name, "password", "secret-"+name)
			if len(p.forms) != 1 || p.forms[0].values.Get("SAMLResponse") == "" {
				t.Fatalf("no response: %s %.1000s", p.at, p.body)
			}
			response := string(base64Text(t, p.forms[0].values.Get("SAMLResponse")))
			if !strings.Contains(response, "EncryptedAssertion") || strings.Contains(response, name) {
				t.Fatalf("the assertion is not encrypted: %.2000s", response)
			}
			p = b.submit(p, 0)
			if in := p.at.String() == base+"/account" && strings.Contains(p.body, "@"+name+":test"); in != tc.ok {
				t.Errorf("signed in: %v, at %s: %d %.1500s", in, p.at, p.status, p.body)
			}
		})
	}
}

// giveRole gives an account a role.
func giveRole(t *testing.T, hs *hstest.Server, name, role string) {
	t.Helper()
	if _, _, err := homeserver.SetRole(t.Context(), hs.Config, slog.New(slog.DiscardHandler), name, role, true); err != nil {
		t.Fatal(err)
	}
}
