package upstream

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/crewjam/saml"
	"github.com/go-json-experiment/json"
	xrv "github.com/mattermost/xml-roundtrip-validator"
	dsig "github.com/russellhaering/goxmldsig"

	"github.com/moothall/moothall/homeserver/store"
)

// samlProvider is a SAML 2.0 service provider: requests by the redirect binding, answers by the POST binding. An answer is
// posted from another site, so without our cookies: it is checked when it comes, kept, and fetched by the browser with a
// redirect to the callback, where the attempt's cookie is.
type samlProvider struct {
	cfg    Config
	client *http.Client
	all    *Providers
	log    *slog.Logger
	idp    *lazy[*saml.EntityDescriptor]

	mu  sync.Mutex
	key *samlKey // nil: not read yet
}

type samlKey struct {
	key  *rsa.PrivateKey
	cert *x509.Certificate
}

// samlSaid is a checked assertion between its coming and its being fetched.
type samlSaid struct {
	Claims    claims    `json:"claims"`
	InReplyTo string    `json:"in_reply_to"`
	ACR       string    `json:"acr"`
	Session   string    `json:"session"`
	At        time.Time `json:"at"`
}

const (
	handoverLife   = 5 * time.Minute
	metadataLife   = time.Hour
	sp2048         = 2048
	maxRelayState  = 512
	samlKeySetting = "saml_service_provider"
)

func newSAML(cfg Config, client *http.Client, all *Providers, log *slog.Logger) *samlProvider {
	s := &samlProvider{cfg: cfg, client: client, all: all, log: log}
	s.idp = &lazy[*saml.EntityDescriptor]{fetch: s.metadata, clock: all.Clock, timeout: cfg.Timeout, life: metadataLife}
	return s
}

// metadata reads the identity provider's metadata.
func (s *samlProvider) metadata(ctx context.Context) (*saml.EntityDescriptor, error) {
	var b []byte
	if s.cfg.SAML.MetadataFile != "" {
		var err error
		if b, err = os.ReadFile(s.cfg.SAML.MetadataFile); err != nil {
			return nil, err
		}
	} else {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.cfg.SAML.MetadataURL, nil)
		if err != nil {
			return nil, err
		}
		resp, err := s.client.Do(req)
		if err != nil {
			return nil, err
		}
		defer func() { _ = resp.Body.Close() }()
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("%w: metadata: %s", errAway, resp.Status)
		}
		if b, err = io.ReadAll(resp.Body); err != nil {
			return nil, err
		}
	}
	return parseMetadata(b)
}

// parseMetadata finds the identity provider in metadata of one party or of several.
func parseMetadata(b []byte) (*saml.EntityDescriptor, error) {
	if err := xrv.Validate(bytes.NewReader(b)); err != nil {
		return nil, fmt.Errorf("read the provider's metadata: %w", err)
	}
	var root struct {
		XMLName xml.Name
	}
	if err := xml.Unmarshal(b, &root); err != nil {
		return nil, fmt.Errorf("read the provider's metadata: %w", err)
	}
	var all saml.EntitiesDescriptor
	if root.XMLName.Local == "EntitiesDescriptor" {
		if err := xml.Unmarshal(b, &all); err != nil {
			return nil, fmt.Errorf("read the provider's metadata: %w", err)
		}
	} else {
		all.EntityDescriptors = make([]saml.EntityDescriptor, 1)
		if err := xml.Unmarshal(b, &all.EntityDescriptors[0]); err != nil {
			return nil, fmt.Errorf("read the provider's metadata: %w", err)
		}
	}
	for i := range all.EntityDescriptors {
		if d := &all.EntityDescriptors[i]; len(d.IDPSSODescriptors) > 0 && d.EntityID != "" {
			return d, nil
		}
	}
	return nil, errors.New("the provider's metadata describe no identity provider")
}

// ownKey is the key of this server as a service provider, one for all its processes. It is made when it is needed first.
func (s *samlProvider) ownKey(ctx context.Context) (*samlKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.key != nil {
		return s.key, nil
	}
	var kept []byte
	found := false
	err := s.all.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		kept, found, err = tx.Setting(samlKeySetting)
		return err
	})
	if err == nil && !found {
		var made []byte
		if made, err = newSAMLKey(s.all.Clock()); err != nil {
			return nil, err
		}
		err = s.all.Store.Write(ctx, func(tx *store.Tx) error {
			var err error
			kept, err = tx.InitSetting(samlKeySetting, made)
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("the key for SAML: %w", err)
	}
	s.key, err = readSAMLKey(kept)
	return s.key, err
}

func newSAMLKey(now time.Time) ([]byte, error) {
	key, err := rsa.GenerateKey(rand.Reader, sp2048)
	if err != nil {
		return nil, err
	}
	// Nobody looks at the certificate's dates: SAML pins the key by the metadata.
	t := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "Moothall"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(30, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	out := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	return append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...), nil
}

func readSAMLKey(b []byte) (*samlKey, error) {
	private, rest := pem.Decode(b)
	public, _ := pem.Decode(rest)
	if private == nil || public == nil {
		return nil, errors.New("the stored key for SAML cannot be read")
	}
	any, err := x509.ParsePKCS8PrivateKey(private.Bytes)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(public.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := any.(*rsa.PrivateKey)
	if !ok {
		return nil, errors.New("the stored key for SAML is not an RSA key")
	}
	return &samlKey{key, cert}, nil
}

var nameIDFormats = map[string]saml.NameIDFormat{
	"unspecified": saml.UnspecifiedNameIDFormat, "persistent": saml.PersistentNameIDFormat, "email": saml.EmailAddressNameIDFormat,
}

// service is the service provider, with or without what is known of the identity provider.
func (s *samlProvider) service(ctx context.Context, idp *saml.EntityDescriptor) (*saml.ServiceProvider, error) {
	k, err := s.ownKey(ctx)
	if err != nil {
		return nil, err
	}
	base := s.all.base(s.cfg.ID) + "/saml"
	var at [3]url.URL
	for i, path := range []string{"/metadata", "/acs", "/slo"} {
		u, err := url.Parse(base + path)
		if err != nil {
			return nil, err
		}
		at[i] = *u
	}
	sp := &saml.ServiceProvider{
		EntityID: s.cfg.SAML.EntityID, Key: k.key, Certificate: k.cert, MetadataURL: at[0], AcsURL: at[1], SloURL: at[2],
		IDPMetadata: idp, HTTPClient: s.client, AuthnNameIDFormat: nameIDFormats[s.cfg.SAML.NameIDFormat],
		LogoutBindings: []string{saml.HTTPRedirectBinding, saml.HTTPPostBinding},
	}
	or(&sp.EntityID, at[0].String())
	if s.cfg.SAML.SignRequests {
		sp.SignatureMethod = dsig.RSASHA256SignatureMethod
	}
	// The library takes an assertion for anybody's that names no audience.
	sp.ValidateAudienceRestriction = func(a *saml.Assertion) error {
		for _, r := range a.Conditions.AudienceRestrictions {
			if r.Audience.Value == sp.EntityID {
				return nil
			}
		}
		return fmt.Errorf("the assertion is not for %s", sp.EntityID)
	}
	return sp, nil
}

func (s *samlProvider) begin(ctx context.Context, b BeginParams, k *kept) (string, error) {
	idp, err := s.idp.get(ctx)
	if err != nil {
		return "", err
	}
	sp, err := s.service(ctx, idp)
	if err != nil {
		return "", err
	}
	if k.Fresh || k.MaxAge > 0 {
		force := true
		sp.ForceAuthn = &force
	}
	acr := k.ACR
	if len(acr) == 0 {
		acr = s.cfg.ACR
	}
	if len(acr) > 0 {
		sp.RequestedAuthnContext = &saml.RequestedAuthnContext{Comparison: "exact", AuthnContextClassRef: acr[0]}
	}
	at := sp.GetSSOBindingLocation(saml.HTTPRedirectBinding)
	if !isHTTP(at) {
		return "", errors.New("the provider's metadata have no address for the redirect binding")
	}
	req, err := sp.MakeAuthenticationRequest(at, saml.HTTPRedirectBinding, saml.HTTPPostBinding)
	if err != nil {
		return "", err
	}
	k.Request = req.ID
	u, err := req.Redirect(url.QueryEscape(b.State), sp)
	if err != nil {
		return "", err
	}
	return u.String(), nil
}

// finish fetches what the provider posted.
func (s *samlProvider) finish(ctx context.Context, form url.Values, k *kept) (assertion, error) {
	if e := form.Get("error"); e != "" {
		return assertion{}, answeredError(e, "")
	}
	var b []byte
	found := false
	err := s.all.Store.Write(ctx, func(tx *store.Tx) error {
		var err error
		b, found, err = tx.TakeHandover(store.HashToken(form.Get("code")), s.cfg.ID, s.all.Clock().UnixMilli())
		return err
	})
	if err != nil {
		return assertion{}, err
	}
	var said samlSaid
	if !found || json.Unmarshal(b, &said) != nil {
		return assertion{}, errNoAttempt
	}
	// The assertion answers the request of this browser's attempt, no other.
	if k.Request == "" || said.InReplyTo != k.Request {
		return assertion{}, errNoAttempt
	}
	return assertion{claims: said.Claims, acr: said.ACR, sid: said.Session, authTime: said.At}, nil
}

// acs handles POST /_moothall/upstream/{id}/saml/acs.
// Spec: SAML 2.0 bindings, section 3.5; profiles, section 4.1.4.
func (s *samlProvider) acs(w http.ResponseWriter, r *http.Request) error {
	r.Body = http.MaxBytesReader(w, r.Body, maxAnswer)
	back := url.Values{}
	if err := r.ParseForm(); err != nil {
		return errInvalidAnswer
	}
	if relay := r.PostFormValue("RelayState"); len(relay) <= maxRelayState {
		back.Set("state", relay)
	}
	code, err := s.accept(r)
	if err != nil {
		status := saml.ErrBadStatus{}
		if errors.As(err, &status) {
			back.Set("error", "access_denied")
		} else {
			back.Set("error", "invalid_response")
		}
		s.log.Warn("SAML response refused", "error", cut(privateError(err).Error(), 400))
	} else {
		back.Set("code", code)
	}
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, r, s.all.callback(s.cfg.ID)+"?"+back.Encode(), http.StatusSeeOther)
	return nil
}

// privateError is the cause that the library keeps from being shown.
func privateError(err error) error {
	var hidden *saml.InvalidResponseError
	if errors.As(err, &hidden) && hidden.PrivateErr != nil {
		return hidden.PrivateErr
	}
	return err
}

// accept checks a posted response and keeps its assertion; it returns the name under which the browser fetches it.
func (s *samlProvider) accept(r *http.Request) (string, error) {
	ctx := r.Context()
	b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(r.PostFormValue("SAMLResponse")), ""))
	if err != nil {
		return "", errors.New("the SAMLResponse is not base64")
	}
	if err := noWeakSignature(b); err != nil {
		return "", err
	}
	if err := s.checkEncrypted(ctx, b); err != nil {
		return "", err
	}
	idp, err := s.idp.get(ctx)
	if err != nil {
		return "", err
	}
	sp, err := s.service(ctx, idp)
	if err != nil {
		return "", err
	}
	// Which request it answers is compared with the attempt's when the browser fetches it; an answer to none is refused.
	var head struct {
		InResponseTo string `xml:"InResponseTo,attr"`
	}
	if err := xml.Unmarshal(b, &head); err != nil || head.InResponseTo == "" {
		return "", errors.New("the response answers no request")
	}
	a, err := sp.ParseXMLResponse(b, []string{head.InResponseTo}, sp.AcsURL)
	if err != nil {
		var hidden *saml.InvalidResponseError
		if bad := (saml.ErrBadStatus{}); errors.As(err, &hidden) && errors.As(hidden.PrivateErr, &bad) {
			return "", bad
		}
		return "", err
	}
	said, err := readAssertion(a)
	if err != nil {
		return "", err
	}
	if err := s.all.once(ctx, "assertion", s.cfg.ID, a.ID, time.Hour); err != nil {
		return "", err
	}
	data, err := json.Marshal(said)
	if err != nil {
		return "", err
	}
	code := random()
	return code, s.all.Store.Write(ctx, func(tx *store.Tx) error {
		return tx.InsertHandover(store.HashToken(code), s.cfg.ID, data, s.all.Clock().Add(handoverLife).UnixMilli())
	})
}

// noWeakSignature refuses SHA-1, which the library still takes.
func noWeakSignature(b []byte) error {
	for _, weak := range []string{"xmldsig#rsa-sha1", "xmldsig#dsa-sha1", "xmldsig#hmac-sha1", "xmldsig#sha1", "xmldsig-more#ecdsa-sha1", "rsa-md5"} {
		if bytes.Contains(b, []byte(weak)) {
			return errors.New("the response is signed with SHA-1; let the provider use SHA-256")
		}
	}
	return nil
}

// readAssertion takes out of a valid assertion what it says, and refuses what the library lets through.
func readAssertion(a *saml.Assertion) (samlSaid, error) {
	said := samlSaid{Claims: claims{}}
	if a.Subject == nil || a.Subject.NameID == nil || a.ID == "" {
		return said, errors.New("the assertion names nobody")
	}
	for _, c := range a.Subject.SubjectConfirmations {
		if c.Method == "urn:oasis:names:tc:SAML:2.0:cm:bearer" && c.SubjectConfirmationData != nil && !c.SubjectConfirmationData.NotOnOrAfter.IsZero() {
			said.InReplyTo = c.SubjectConfirmationData.InResponseTo
		}
	}
	if said.InReplyTo == "" {
		return said, errors.New("the assertion is not confirmed for a bearer, for a time and in answer to a request")
	}
	if a.Subject.NameID.Format != string(saml.TransientNameIDFormat) { // another one at each sign-in names nobody
		said.Claims["name_id"] = a.Subject.NameID.Value
	}
	for _, st := range a.AuthnStatements {
		said.Session, said.At = st.SessionIndex, st.AuthnInstant
		if st.AuthnContext.AuthnContextClassRef != nil {
			said.ACR = st.AuthnContext.AuthnContextClassRef.Value
		}
	}
	if len(a.AuthnStatements) == 0 {
		return said, errors.New("the assertion does not say that somebody signed in")
	}
	for _, st := range a.AttributeStatements {
		for _, attr := range st.Attributes {
			for _, name := range []string{attr.Name, attr.FriendlyName} {
				if name == "" {
					continue
				}
				var list []any
				for _, v := range attr.Values {
					list = append(list, v.Value)
				}
				if had, ok := said.Claims[name]; ok && name == attr.Name {
					list = append(asList(had), list...)
				}
				if said.Claims[name] = any(list); len(list) == 1 {
					said.Claims[name] = list[0]
				}
			}
		}
	}
	return said, nil
}

func asList(v any) []any {
	if l, ok := v.([]any); ok {
		return slices.Clone(l)
	}
	return []any{v}
}

// ownMetadata handles GET /_moothall/upstream/{id}/saml/metadata, which the provider's administrator loads.
func (s *samlProvider) ownMetadata(w http.ResponseWriter, r *http.Request) error {
	sp, err := s.service(r.Context(), nil)
	if err != nil {
		return err
	}
	d := sp.Metadata()
	for i := range d.SPSSODescriptors {
		desc := &d.SPSSODescriptors[i]
		desc.AssertionConsumerServices = desc.AssertionConsumerServices[:1] // the artifact binding is not served
		if !s.cfg.SAML.Encrypted {
			desc.KeyDescriptors = slices.DeleteFunc(desc.KeyDescriptors, func(k saml.KeyDescriptor) bool { return k.Use == "encryption" })
		}
	}
	b, err := xml.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/samlmetadata+xml")
	w.Header().Set("Cache-Control", "max-age=300")
	_, _ = w.Write(append([]byte(xml.Header), b...))
	return nil
}
