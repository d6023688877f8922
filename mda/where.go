package mda

// Destination says where the delivery would go, with every format expanded: the
// path of a mailbox, the host or socket of LMTP, or the command line, the
// wrapper around it. Nothing is opened; SpoolDir is that of Options. The error
// is the one that the delivery would fail with.
func (v *Delivery) Destination(spoolDir string) (string, error) {
	if spoolDir == "" {
		spoolDir = DefaultSpoolDir
	}
	var to string
	var err error
	switch v.Method {
	case Mbox:
		return spoolDir + "/" + v.User, nil
	case Maildir:
		to, err = v.maildirPath()
	case File:
		to, err = v.path(v.Path)
	case LMTP:
		if to, err = v.expand(v.Path, usePath); err != nil {
			err = v.unexpanded("lmtp destination", err)
		}
	default:
		if to, err = v.expand(v.Command, useCommand); err != nil {
			err = v.unexpanded("command line", err)
		}
	}
	if err != nil || v.Wrapper == "" {
		return to, err
	}
	values := v.Values
	values.MDA = to
	if to, err = values.expand(v.Wrapper, useCommand); err != nil {
		err = v.unexpanded("wrapper command line", err)
	}
	return to, err
}
