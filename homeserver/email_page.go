package homeserver

import (
	"crypto/sha256"
	"net/http"
	"net/url"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/push"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// emailPagePath is where the links in mails lead.
const emailPagePath = "/_moothall/email/validate"

// emailStopPath is where the links in mails about unread messages lead.
const emailStopPath = "/_moothall/email/stop"

func (s *Server) emailPageRoutes() []web.Route {
	return []web.Route{
		{Pattern: "GET " + emailPagePath, Rate: web.RateLogin, Handler: s.showEmail},
		{Pattern: "POST " + emailPagePath, Rate: web.RateLogin, Handler: s.confirmEmail},
		{Pattern: "GET " + emailStopPath, Rate: web.RateLogin, Handler: s.showStop},
		{Pattern: "POST " + emailStopPath, Rate: web.RateLogin, Handler: s.stopEmail},
	}
}

// showEmail handles GET /_moothall/email/validate. It only asks: programs that look through mail open its links too, and
// must not confirm anything.
func (s *Server) showEmail(w http.ResponseWriter, r *http.Request) error {
	token := web.QueryString(r, "token")
	v, err := s.accounts.EmailToken(r.Context(), token)
	if mxerr.Is(err, "M_NOT_FOUND") {
		return s.pages.write(w, r, http.StatusNotFound, "email_closed", pageData{ServerName: s.cfg.ServerName})
	}
	if err != nil {
		return err
	}
	return s.pages.write(w, r, http.StatusOK, "email", pageData{
		ServerName: s.cfg.ServerName, Token: token, Address: v.Address, ForPassword: v.Purpose == store.EmailForPassword,
	})
}

// confirmEmail handles POST /_moothall/email/validate. Where the client named a page to go on to it is shown as a link
// with its host, not jumped to: anybody can have a mail sent that names any page.
func (s *Server) confirmEmail(w http.ResponseWriter, r *http.Request) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	data := pageData{ServerName: s.cfg.ServerName}
	v, err := s.accounts.ConfirmEmail(r.Context(), r.PostFormValue("token"))
	if mxerr.Is(err, "M_NOT_FOUND") {
		return s.pages.write(w, r, http.StatusNotFound, "email_closed", data)
	}
	if err != nil {
		return err
	}
	if u, err := url.Parse(v.NextLink); err == nil && u.Host != "" {
		data.Next, data.NextHost = v.NextLink, u.Host
	}
	return s.pages.write(w, r, http.StatusOK, "email_done", data)
}

// showStop handles GET /_moothall/email/stop. It only asks, as showEmail does.
func (s *Server) showStop(w http.ResponseWriter, r *http.Request) error {
	token := web.QueryString(r, "token")
	to, err := s.push.EmailOf(r.Context(), token)
	if mxerr.Is(err, "M_NOT_FOUND") {
		return s.pages.write(w, r, http.StatusOK, "stop", pageData{ServerName: s.cfg.ServerName})
	}
	if err != nil {
		return err
	}
	return s.pages.write(w, r, http.StatusOK, "stop", pageData{ServerName: s.cfg.ServerName, Token: token, Address: to.Pushkey})
}

// stopEmail handles POST /_moothall/email/stop, of the page and of mail programs (RFC 8058), which leave the token in the
// address.
func (s *Server) stopEmail(w http.ResponseWriter, r *http.Request) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	if err := s.push.StopEmail(r.Context(), r.FormValue("token")); err != nil && !mxerr.Is(err, "M_NOT_FOUND") {
		return err
	}
	return s.pages.write(w, r, http.StatusOK, "stop", pageData{ServerName: s.cfg.ServerName})
}

// pushEmails is what package push needs to send mail; nil where this server sends none.
func (s *Server) pushEmails() *push.Emails {
	if s.cfg.Email.Server == "" {
		return nil
	}
	secret := sha256.Sum256(append([]byte("moothall mails about unread messages"), s.key.Private.Seed()...))
	return &push.Emails{After: s.cfg.Push.MailAfter.Std(), Compose: account.UnreadMail, Queued: s.outbox.Kick, Secret: secret[:]}
}
