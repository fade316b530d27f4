package sso

import (
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

func (s *SSO) clientRoutes() []web.Route {
	return []web.Route{{Pattern: "POST " + pathOAuth + "/register", Rate: web.RateRegister, Handler: endpoint(s.registerClient)}}
}

const (
	appWeb    = "web"
	appNative = "native"

	maxRedirects  = 20
	maxClientURI  = 2048
	maxClientName = 128 // characters
)

// client is the metadata of a registered client.
// Spec: client-server API, "Client metadata"; RFC 7591, section 2.
type client struct {
	ID            string   `json:"-"`
	Name          string   `json:"client_name,omitzero"`
	NameZH        string   `json:"client_name#zh,omitzero"`
	URI           string   `json:"client_uri"`
	LogoURI       string   `json:"logo_uri,omitzero"`
	TOSURI        string   `json:"tos_uri,omitzero"`
	PolicyURI     string   `json:"policy_uri,omitzero"`
	Redirects     []string `json:"redirect_uris,omitempty"`
	ResponseTypes []string `json:"response_types"`
	GrantTypes    []string `json:"grant_types"`
	AuthMethod    string   `json:"token_endpoint_auth_method"`
	Application   string   `json:"application_type"`
}

// name is how people are told which client it is.
func (c *client) name(lang string) string {
	if lang == "zh" && c.NameZH != "" {
		return c.NameZH
	}
	if c.Name != "" {
		return c.Name
	}
	return c.host()
}

// host is the part of a client that it cannot choose freely: its redirect URIs belong to it.
func (c *client) host() string {
	u, err := url.Parse(c.URI)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

func (c *client) allows(grant string) bool { return slices.Contains(c.GrantTypes, grant) }

func asOAuth(err error, into **oauthError) bool { return errors.As(err, into) }

func badMetadata(why string) *oauthError { return badRequest("invalid_client_metadata", why) }
func badRedirect(why string) *oauthError { return badRequest("invalid_redirect_uri", why) }

// registerClient handles POST /oauth2/register. Clients of the same metadata are one: the id is made of it.
// Spec: client-server API, "Client registration"; RFC 7591.
func (s *SSO) registerClient(w http.ResponseWriter, r *http.Request) error {
	raw, err := web.ReadRawObject(r)
	if err != nil {
		return err
	}
	c, err := s.parseClient(raw)
	if err != nil {
		return err
	}
	metadata, err := json.Marshal(c, json.Deterministic(true))
	if err != nil {
		return err
	}
	sum := sha256.Sum256(metadata)
	c.ID = strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:16]))
	now := s.now()
	if err := s.Store.Write(r.Context(), func(tx *store.Tx) error { return tx.PutOAuthClient(c.ID, metadata, now) }); err != nil {
		return err
	}
	out := map[string]any{}
	if err := json.Unmarshal(metadata, &out); err != nil {
		return err
	}
	out["client_id"], out["client_id_issued_at"] = c.ID, now/1000
	return web.WriteJSONStatus(w, http.StatusCreated, out)
}

// parseClient reads and checks metadata; what is not understood is left out of what is registered.
func (s *SSO) parseClient(raw []byte) (client, error) {
	var c client
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, badMetadata("the metadata have a member of a wrong type")
	}
	if c.Application == "" {
		c.Application = appWeb
	}
	if c.Application != appWeb && c.Application != appNative {
		return c, badMetadata("application_type must be web or native")
	}
	switch c.AuthMethod {
	case "":
		// RFC 7591 says client_secret_basic; every client of Matrix is a public one.
		c.AuthMethod = "none"
	case "none":
	default:
		return c, badMetadata("token_endpoint_auth_method must be none")
	}
	if c.GrantTypes == nil {
		c.GrantTypes = []string{grantCode, grantRefresh}
	}
	c.GrantTypes = slices.DeleteFunc(c.GrantTypes, func(g string) bool { return g != grantCode && g != grantRefresh && g != grantDevice })
	if c.ResponseTypes == nil && c.allows(grantCode) {
		c.ResponseTypes = []string{"code"}
	}
	c.ResponseTypes = slices.DeleteFunc(c.ResponseTypes, func(t string) bool { return t != "code" })
	if !c.allows(grantCode) && !c.allows(grantDevice) {
		return c, badMetadata("grant_types must hold authorization_code or " + grantDevice)
	}
	if c.allows(grantCode) && len(c.ResponseTypes) == 0 {
		return c, badMetadata("response_types must hold code")
	}
	if len(c.Name) > 4*maxClientName || len([]rune(c.Name)) > maxClientName || len([]rune(c.NameZH)) > maxClientName {
		return c, badMetadata("client_name is too long")
	}
	return c, s.checkClientURIs(&c)
}

// checkClientURIs checks all addresses: they belong to client_uri.
// Spec: client-server API, "Redirect URI validation".
func (s *SSO) checkClientURIs(c *client) error {
	if c.URI == "" {
		return badMetadata("client_uri is required")
	}
	base, err := s.clientURL(c.URI)
	if err != nil {
		return badMetadata("client_uri " + err.Error())
	}
	for name, uri := range map[string]string{"logo_uri": c.LogoURI, "tos_uri": c.TOSURI, "policy_uri": c.PolicyURI} {
		if uri == "" {
			continue
		}
		u, err := s.clientURL(uri)
		if err != nil {
			return badMetadata(name + " " + err.Error())
		}
		if !below(u.Hostname(), base.Hostname()) {
			return badMetadata(name + " must be on the host of client_uri or below it")
		}
	}
	if len(c.Redirects) == 0 && c.allows(grantCode) {
		return badRedirect("redirect_uris must hold one at least")
	}
	if len(c.Redirects) > maxRedirects {
		return badRedirect("redirect_uris has too many")
	}
	for _, uri := range c.Redirects {
		if err := s.checkRedirect(uri, base, c.Application); err != nil {
			return badRedirect("redirect URI " + err.Error())
		}
	}
	return nil
}

var (
	errNotURL      = errors.New("is not a URL")
	errNotHTTPS    = errors.New("must begin with https://")
	errUserInfo    = errors.New("must have no user or password")
	errFragment    = errors.New("must have no fragment")
	errForeignHost = errors.New("must be on the host of client_uri or below it")
	errScheme      = errors.New("must have a scheme that is client_uri's host in reverse, or http on a loopback address")
	errAuthority   = errors.New("of a private scheme must have no authority")
	errPort        = errors.New("on a loopback address must have no port")
)

// clientURL reads an https address without credentials.
func (s *SSO) clientURL(uri string) (*url.URL, error) {
	u, err := url.Parse(uri)
	switch {
	case err != nil || u.Host == "" || len(uri) > maxClientURI || strings.ContainsAny(uri, " \t\r\n\\\"<>"):
		return nil, errNotURL
	case u.Scheme != "https" && !(u.Scheme == "http" && s.Config.InsecureClientURIs):
		return nil, errNotHTTPS
	case u.User != nil:
		return nil, errUserInfo
	case u.Fragment != "" || strings.Contains(uri, "#"):
		return nil, errFragment
	case u.Hostname() == "" || strings.HasSuffix(u.Hostname(), "."):
		return nil, errNotURL
	}
	return u, nil
}

// below tells whether a host is another one or a subdomain of it.
func below(host, base string) bool {
	host, base = strings.ToLower(host), strings.ToLower(base)
	if host == base {
		return true
	}
	if _, err := netip.ParseAddr(base); err == nil {
		return false
	}
	return strings.HasSuffix(host, "."+base)
}

func (s *SSO) checkRedirect(uri string, base *url.URL, application string) error {
	u, err := url.Parse(uri)
	switch {
	case err != nil || u.Scheme == "" || len(uri) > maxClientURI || strings.ContainsAny(uri, " \t\r\n\\\"<>"):
		return errNotURL
	case strings.Contains(uri, "#"):
		return errFragment
	case u.User != nil:
		return errUserInfo
	case u.Scheme == "https", u.Scheme == "http" && s.Config.InsecureClientURIs && below(u.Hostname(), base.Hostname()):
		if u, err = s.clientURL(uri); err != nil {
			return err
		}
		if !below(u.Hostname(), base.Hostname()) {
			return errForeignHost
		}
		return nil
	case application != appNative:
		return errNotHTTPS
	case u.Scheme == "http":
		if !loopback(u.Hostname()) {
			return errScheme
		}
		if u.Port() != "" {
			return errPort
		}
		return nil
	}
	labels := strings.Split(strings.ToLower(base.Hostname()), ".")
	slices.Reverse(labels)
	want := strings.Join(labels, ".")
	if u.Scheme != want && !strings.HasPrefix(u.Scheme, want+".") {
		return errScheme
	}
	if u.Host != "" || strings.HasPrefix(uri[len(u.Scheme)+1:], "//") {
		return errAuthority
	}
	return nil
}

func loopback(host string) bool { return host == "localhost" || host == "127.0.0.1" || host == "::1" }

// redirects tells whether a redirect URI of a request is one of the client's: letter by letter, but for the port of
// loopback addresses. RFC 8252, section 7.3; RFC 9700, section 2.1.
func (c *client) redirects(uri string) bool {
	if slices.Contains(c.Redirects, uri) {
		return true
	}
	if c.Application != appNative {
		return false
	}
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != "http" || u.Port() == "" || !loopback(u.Hostname()) || u.User != nil || strings.Contains(uri, "#") {
		return false
	}
	host := u.Hostname()
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	u.Host = host
	return slices.Contains(c.Redirects, u.String())
}

// client finds a registered client; nil where there is none.
func (s *SSO) client(r *http.Request, clientID string) (*client, error) {
	if clientID == "" || len(clientID) > 64 {
		return nil, nil
	}
	var metadata []byte
	found := false
	err := s.Store.Read(r.Context(), func(tx *store.Tx) (err error) {
		metadata, found, err = tx.OAuthClient(clientID)
		return err
	})
	if err != nil || !found {
		return nil, err
	}
	c := &client{ID: clientID}
	return c, json.Unmarshal(metadata, c)
}

var errNoClient = mxerr.New(http.StatusBadRequest, "M_UNKNOWN_CLIENT", "the app is not registered here: go back to it and begin to sign in again")
