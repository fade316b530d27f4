package upstream

import (
	"bytes"
	"compress/flate"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/beevik/etree"
	"github.com/crewjam/saml"
	xrv "github.com/mattermost/xml-roundtrip-validator"
	dsig "github.com/russellhaering/goxmldsig"
)

// slo handles GET and POST /_moothall/upstream/{id}/saml/slo: the provider ends its session, so the sessions here end. The
// request must be signed. Spec: SAML 2.0 profiles, section 4.4; bindings, sections 3.4 and 3.5.
func (s *samlProvider) slo(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	r.Body = http.MaxBytesReader(w, r.Body, maxAnswer)
	if err := r.ParseForm(); err != nil {
		return errInvalidAnswer
	}
	idp, err := s.idp.get(ctx)
	if err != nil {
		return s.all.explain(s.all.byID[s.cfg.ID], "logout", err)
	}
	sp, err := s.service(ctx, idp)
	if err != nil {
		return err
	}
	req, err := readLogout(r, idp, sp.SloURL.String(), s.all.Clock())
	if err != nil {
		s.log.Warn("SAML logout refused", "error", cut(err.Error(), 400))
		return errInvalidAnswer
	}
	if err := s.all.once(ctx, "logout", s.cfg.ID, req.ID, time.Hour); err != nil {
		return err
	}
	session, subject := "", ""
	if req.SessionIndex != nil {
		session = req.SessionIndex.Value
	}
	if session == "" {
		subject = req.NameID.Value
	}
	if err := s.all.endUpstream(ctx, s.all.byID[s.cfg.ID], subject, session); err != nil {
		return err
	}
	back := sp.GetSLOBindingLocation(saml.HTTPRedirectBinding)
	if !isHTTP(back) || strings.Contains(r.Header.Get("Content-Type"), "soap") {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	resp, err := sp.MakeLogoutResponse(back, req.ID)
	if err != nil {
		return err
	}
	relay := r.Form.Get("RelayState")
	if len(relay) > maxRelayState {
		relay = ""
	}
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, r, resp.Redirect(relay).String(), http.StatusSeeOther)
	return nil
}

// readLogout checks the signature of a logout request and reads it.
func readLogout(r *http.Request, idp *saml.EntityDescriptor, at string, now time.Time) (*saml.LogoutRequest, error) {
	certs, err := signingCerts(idp)
	if err != nil {
		return nil, err
	}
	raw := strings.Join(strings.Fields(r.Form.Get("SAMLRequest")), "")
	b, err := base64.StdEncoding.DecodeString(raw)
	if err != nil || len(b) == 0 {
		return nil, errors.New("the SAMLRequest is not base64")
	}
	if r.Method == http.MethodGet {
		if err := checkQuerySignature(r.URL.RawQuery, certs); err != nil {
			return nil, err
		}
		if b, err = io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(b)), maxAnswer)); err != nil {
			return nil, fmt.Errorf("inflate: %w", err)
		}
	}
	if err := noWeakSignature(b); err != nil {
		return nil, err
	}
	if err := xrv.Validate(bytes.NewReader(b)); err != nil {
		return nil, err
	}
	if r.Method == http.MethodPost {
		if b, err = signedElement(b, certs, now); err != nil {
			return nil, err
		}
	}
	var req saml.LogoutRequest
	if err := xml.Unmarshal(b, &req); err != nil {
		return nil, err
	}
	switch {
	case req.Issuer == nil || req.Issuer.Value != idp.EntityID:
		return nil, errors.New("another issuer")
	case req.Destination != "" && req.Destination != at:
		return nil, fmt.Errorf("the destination is %q", req.Destination)
	case req.IssueInstant.Before(now.Add(-saml.MaxIssueDelay - saml.MaxClockSkew)), req.IssueInstant.After(now.Add(saml.MaxClockSkew)):
		return nil, fmt.Errorf("issued at %s", req.IssueInstant)
	case req.NotOnOrAfter != nil && !now.Before(req.NotOnOrAfter.Add(saml.MaxClockSkew)):
		return nil, errors.New("expired")
	case req.ID == "" || req.NameID == nil || req.NameID.Value == "":
		return nil, errors.New("it names nobody")
	}
	return &req, nil
}

func signingCerts(idp *saml.EntityDescriptor) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, d := range idp.IDPSSODescriptors {
		for _, k := range d.KeyDescriptors {
			if k.Use != "" && k.Use != "signing" {
				continue
			}
			for _, c := range k.KeyInfo.X509Data.X509Certificates {
				der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(c.Data), ""))
				if err != nil {
					return nil, err
				}
				cert, err := x509.ParseCertificate(der)
				if err != nil {
					return nil, err
				}
				out = append(out, cert)
			}
		}
	}
	if len(out) == 0 {
		return nil, errors.New("the provider's metadata have no key for signatures")
	}
	return out, nil
}

// signedElement is the part of a document that its signature covers.
func signedElement(b []byte, certs []*x509.Certificate, now time.Time) ([]byte, error) {
	doc := etree.NewDocument()
	if err := doc.ReadFromBytes(b); err != nil {
		return nil, err
	}
	if doc.Root() == nil {
		return nil, errors.New("the document is empty")
	}
	v := dsig.NewDefaultValidationContext(&dsig.MemoryX509CertificateStore{Roots: certs})
	v.IdAttribute, v.Clock = "ID", dsig.NewFakeClockAt(now)
	el, err := v.Validate(doc.Root())
	if err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	out := etree.NewDocument()
	out.SetRoot(el)
	return out.WriteToBytes()
}

// checkQuerySignature checks the signature of the redirect binding, which covers the query as it was sent.
// Spec: SAML 2.0 bindings, section 3.4.4.1.
func checkQuerySignature(query string, certs []*x509.Certificate) error {
	part := map[string]string{}
	for p := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(p, "=")
		if _, twice := part[name]; twice {
			return fmt.Errorf("%s is there twice", name)
		}
		part[name] = value
	}
	signed := "SAMLRequest=" + part["SAMLRequest"]
	if relay, ok := part["RelayState"]; ok {
		signed += "&RelayState=" + relay
	}
	signed += "&SigAlg=" + part["SigAlg"]
	algorithm, err := url.QueryUnescape(part["SigAlg"])
	if err != nil {
		return err
	}
	var kind crypto.Hash
	var sum []byte
	switch algorithm {
	case dsig.RSASHA256SignatureMethod:
		h := sha256.Sum256([]byte(signed))
		kind, sum = crypto.SHA256, h[:]
	case dsig.RSASHA512SignatureMethod:
		h := sha512.Sum512([]byte(signed))
		kind, sum = crypto.SHA512, h[:]
	default:
		return fmt.Errorf("signature algorithm %q is not accepted", cut(algorithm, 80))
	}
	text, err := url.QueryUnescape(part["Signature"])
	if err != nil {
		return err
	}
	sig, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(text), ""))
	if err != nil {
		return err
	}
	for _, c := range certs {
		if key, ok := c.PublicKey.(*rsa.PublicKey); ok && rsa.VerifyPKCS1v15(key, kind, sum, sig) == nil {
			return nil
		}
	}
	return errors.New("the signature does not fit any key of the provider")
}
