package factor

import (
	"embed"
	"io/fs"
)

//go:embed pages
var files embed.FS

// pageFiles are the templates, texts and scripts of the pages.
func pageFiles() fs.FS {
	sub, err := fs.Sub(files, "pages")
	if err != nil {
		return files // the folder's name is a constant: this cannot be
	}
	return sub
}
