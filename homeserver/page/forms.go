package page

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"net/http"

	"github.com/moothall/moothall/homeserver/mxerr"
)

const (
	csrfCookie = "mh_csrf"
	csrfField  = "csrf"
	maxForm    = 64 << 10
)

// cookieName adds the prefix by which browsers refuse the cookie from other hosts of the domain and from http.
func (k *Kit) cookieName(name string) string {
	if k.secure {
		return "__Host-" + name
	}
	return name
}

// SetCookie sets a cookie for the whole server, HttpOnly and SameSite=Lax: people arrive from their clients and from identity
// providers by links and redirects.
func (k *Kit) SetCookie(w http.ResponseWriter, c *http.Cookie) {
	out := *c
	if out.Name != langCookie {
		out.Name = k.cookieName(c.Name)
	}
	out.Path, out.HttpOnly, out.Secure, out.SameSite = "/", true, k.secure, http.SameSiteLaxMode
	http.SetCookie(w, &out)
}

// Cookie is the value of a cookie that SetCookie has set, or "".
func (k *Kit) Cookie(r *http.Request, name string) string {
	c, err := r.Cookie(k.cookieName(name))
	if err != nil {
		return ""
	}
	return c.Value
}

// DeleteCookie takes a cookie away.
func (k *Kit) DeleteCookie(w http.ResponseWriter, name string) {
	k.SetCookie(w, &http.Cookie{Name: name, MaxAge: -1})
}

// token is the browser's secret that forms have to send back; one is made where there is none.
func (k *Kit) token(w http.ResponseWriter, r *http.Request) string {
	if t := k.Cookie(r, csrfCookie); len(t) == csrfLength {
		return t
	}
	// Another page of the same request (an error after a form) must show the token that is being set.
	for _, c := range (&http.Response{Header: w.Header()}).Cookies() {
		if c.Name == k.cookieName(csrfCookie) {
			return c.Value
		}
	}
	var b [24]byte
	_, _ = rand.Read(b[:]) // never fails
	t := base64.RawURLEncoding.EncodeToString(b[:])
	k.SetCookie(w, &http.Cookie{Name: csrfCookie, Value: t})
	return t
}

const csrfLength = 32 // characters

var errForged = mxerr.New(http.StatusForbidden, "M_FORBIDDEN", "this form was not sent from its own page, or the page is too old: load it again")

// Form reads a posted form and refuses it unless it comes from one of our pages: the hidden field must equal the cookie,
// and a browser that tells where the request comes from must say from here.
func (k *Kit) Form(w http.ResponseWriter, r *http.Request) error {
	if err := ReadForm(w, r); err != nil {
		return err
	}
	return k.CheckCSRF(r)
}

// ReadForm reads a posted form of bounded size without looking at where it comes from.
func ReadForm(w http.ResponseWriter, r *http.Request) error {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return mxerr.TooLarge("the form is too large")
		}
		return mxerr.InvalidParam("the form cannot be read")
	}
	return nil
}

// CheckCSRF refuses a form (read already) that was not sent from one of our pages.
func (k *Kit) CheckCSRF(r *http.Request) error {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
	default:
		return errForged
	}
	sent, kept := r.PostFormValue(csrfField), k.Cookie(r, csrfCookie)
	if len(kept) != csrfLength || subtle.ConstantTimeCompare([]byte(sent), []byte(kept)) != 1 {
		return errForged
	}
	return nil
}
