package console

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/moothall/moothall/homeserver/mxerr"
)

const (
	reasonCookie = "mh_reason"
	reasonAge    = 8 * time.Hour
	minReason    = 5
	maxReason    = 160 // characters: what the audit log keeps
)

// checkReason refuses a reason that says nothing, or too much to be kept.
func checkReason(reason string) error {
	if n := utf8.RuneCountInString(strings.TrimSpace(reason)); n < minReason || n > maxReason || !utf8.ValidString(reason) {
		return mxerr.InvalidParam("state the reason of this search in 5 to 160 characters, for example the number of a case")
	}
	return nil
}

// setReason handles POST /console/search/reason.
func (c *Console) setReason(w http.ResponseWriter, r *http.Request, o *officer) error {
	o.reason = strings.TrimSpace(r.PostFormValue("reason"))
	if checkReason(o.reason) != nil {
		return c.pages.Render(w, r, http.StatusBadRequest, "reason", reasonData{Reason: o.reason, Problem: true})
	}
	if err := c.record(r.Context(), o, "archive.reason", "", nil); err != nil {
		return err
	}
	until := strconv.FormatInt(c.Clock().Add(reasonAge).Unix(), 10)
	value := until + "." + base64.RawURLEncoding.EncodeToString([]byte(o.reason))
	value += "." + base64.RawURLEncoding.EncodeToString(c.reasonMAC(o, value))
	c.Kit.SetCookie(w, &http.Cookie{Name: reasonCookie, Value: value, MaxAge: int(reasonAge / time.Second)})
	return goTo(pathSearch)(w, r, o)
}

// reasonMAC binds a reason to the officer's session.
func (c *Console) reasonMAC(o *officer, value string) []byte {
	m := hmac.New(sha256.New, c.Secret)
	m.Write([]byte("moothall-reason\x00" + string(o.user) + "\x00" + o.session + "\x00" + value))
	return m.Sum(nil)
}

// reason reads the reason that an officer stated in this session, "" for none.
func (c *Console) reason(r *http.Request, o *officer) string {
	value := c.Kit.Cookie(r, reasonCookie)
	cut := strings.LastIndexByte(value, '.')
	if cut < 0 {
		return ""
	}
	mac, err := base64.RawURLEncoding.DecodeString(value[cut+1:])
	if err != nil || !hmac.Equal(mac, c.reasonMAC(o, value[:cut])) {
		return ""
	}
	until, text, _ := strings.Cut(value[:cut], ".")
	at, err1 := strconv.ParseInt(until, 10, 64)
	reason, err2 := base64.RawURLEncoding.DecodeString(text)
	if err1 != nil || err2 != nil || at < c.Clock().Unix() {
		return ""
	}
	return string(reason)
}

type reasonData struct {
	Reason  string
	Problem bool
}
