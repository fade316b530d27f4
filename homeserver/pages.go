package homeserver

import (
	"embed"
	"io/fs"
	"net/http"

	"github.com/moothall/moothall/homeserver/page"
	"github.com/moothall/moothall/homeserver/web"
)

//go:embed pages
var pageFiles embed.FS

// pages are the few HTML pages of the server itself.
type pages struct{ set *page.Set }

// pageData is what the templates may show.
type pageData struct {
	ServerName, PublicURL    string
	Token, Username, Problem string
	MinLength                int
	Address, Next, NextHost  string // of an e-mail address to be confirmed
	ForPassword              bool
}

func newPages(kit *page.Kit) (*pages, error) {
	files, err := fs.Sub(pageFiles, "pages")
	if err != nil {
		return nil, err
	}
	set, err := kit.Set(files)
	return &pages{set}, err
}

func (p *pages) write(w http.ResponseWriter, r *http.Request, status int, name string, data pageData) error {
	return p.set.Render(w, r, status, name, data)
}

func (s *Server) pageRoutes() []web.Route {
	return []web.Route{
		{Pattern: "GET /", Handler: s.rootPage},
		{Pattern: "GET /setup", Rate: web.RateLogin, Handler: s.pages.set.Handler(s.showSetup)},
		{Pattern: "POST /setup", Rate: web.RateLogin, Handler: s.pages.set.Handler(s.finishSetup)},
	}
}

// rootPage handles GET /: people who open the server's address learn what it is and how to use it.
func (s *Server) rootPage(w http.ResponseWriter, r *http.Request) error {
	return s.pages.write(w, r, http.StatusOK, "root", pageData{ServerName: s.cfg.ServerName, PublicURL: s.cfg.PublicURL})
}
