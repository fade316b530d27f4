package homeserver

import (
	"net/http"
	"net/url"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// emailPagePath is where the links in mails lead.
const emailPagePath = "/_moothall/email/validate"

func (s *Server) emailPageRoutes() []web.Route {
	return []web.Route{
		{Pattern: "GET " + emailPagePath, Rate: web.RateLogin, Handler: s.showEmail},
		{Pattern: "POST " + emailPagePath, Rate: web.RateLogin, Handler: s.confirmEmail},
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
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		return mxerr.InvalidParam("the form cannot be read")
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
