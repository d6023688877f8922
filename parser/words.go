package parser

// modernWords are the reserved words since 6.4.
var modernWords = map[string]int{
	"action": mACTION, "admd": mADMD, "alias": mALIAS, "any": mANY, "auth": mAUTH,
	"auth-optional": mAUTHOPTIONAL, "backup": mBACKUP, "bounce": mBOUNCE, "bypass": mBYPASS,
	"ca": mCA, "cert": mCERT, "chain": mCHAIN, "chroot": mCHROOT, "ciphers": mCIPHERS,
	"commit": mCOMMIT, "compression": mCOMPRESSION, "connect": mCONNECT, "data": mDATA,
	"data-line": mDATALINE, "dhe": mDHE, "disconnect": mDISCONNECT, "domain": mDOMAIN,
	"ehlo": mEHLO, "encryption": mENCRYPTION, "expand-only": mEXPANDONLY, "fcrdns": mFCRDNS,
	"filter": mFILTER, "for": mFOR, "forward-only": mFORWARDONLY, "from": mFROM,
	"group": mGROUP, "helo": mHELO, "helo-src": mHELOSRC, "host": mHOST,
	"hostname": mHOSTNAME, "hostnames": mHOSTNAMES, "include": mINCLUDE, "inet4": mINET4,
	"inet6": mINET6, "junk": mJUNK, "key": mKEY, "limit": mLIMIT, "listen": mLISTEN,
	"lmtp": mLMTP, "local": mLOCAL, "mail-from": mMAILFROM, "maildir": mMAILDIR,
	"mask-src": mMASKSRC, "masquerade": mMASQUERADE, "match": mMATCH,
	"max-deferred": mMAXDEFERRED, "max-message-size": mMAXMESSAGESIZE, "mbox": mMBOX,
	"mda": mMDA, "mta": mMTA, "mx": mMX, "no-dsn": mNODSN, "no-verify": mNOVERIFY,
	"noop": mNOOP, "on": mON, "phase": mPHASE, "pki": mPKI, "port": mPORT, "proc": mPROC,
	"proc-exec": mPROCEXEC, "protocols": mPROTOCOLS, "proxy-v2": mPROXYV2, "queue": mQUEUE,
	"quit": mQUIT, "rcpt-to": mRCPTTO, "rdns": mRDNS, "received-auth": mRECEIVEDAUTH,
	"recipient": mRECIPIENT, "regex": mREGEX, "reject": mREJECT, "relay": mRELAY,
	"report": mREPORT, "rewrite": mREWRITE, "rset": mRSET, "scheduler": mSCHEDULER,
	"senders": mSENDERS, "smtp": mSMTP, "smtp-in": mSMTPIN, "smtp-out": mSMTPOUT,
	"smtps": mSMTPS, "socket": mSOCKET, "src": mSRC, "srs": mSRS,
	"sub-addr-delim": mSUBADDRDELIM, "table": mTABLE, "tag": mTAG, "tagged": mTAGGED,
	"tls": mTLS, "tls-require": mTLSREQUIRE, "ttl": mTTL, "user": mUSER,
	"userbase": mUSERBASE, "verify": mVERIFY, "virtual": mVIRTUAL,
	"warn-interval": mWARNINTERVAL, "wrapper": mWRAPPER,

	"log-conversation": mLOGCONVERSATION, "on-failure": mONFAILURE, "prefer": mPREFER,
	"by-sender": mBYSENDER, "full-message": mFULLMESSAGE, "hold": mHOLD, "quadratic": mQUADRATIC, "retry": mRETRY,
	"repair-newlines": mREPAIRNEWLINES, "resolver": mRESOLVER, "timeout": mTIMEOUT,
	"verify-rcpt": mVERIFYRCPT, "without": mWITHOUT, "x-original-to": mXORIGINALTO,
}

// laterWords are the words that OpenSMTPD does not have, with the statements
// that can ask for them. Elsewhere, and where a name must stand, they are names,
// so that a file that uses them as such keeps its meaning.
var laterWords = map[string]string{
	"full-message": "bounce", "hold": "action", "log-conversation": "listen", "on-failure": "proc filter",
	"by-sender": "action", "prefer": "action mta", "quadratic": "action queue", "retry": "action queue",
	"repair-newlines": "listen", "resolver": "resolver", "timeout": "proc filter",
	"verify-rcpt": "action", "without": "listen", "x-original-to": "action",
}

// askingWords stand before a name in statements that have later words.
const askingWords = "lmtp mda wrapper alias virtual userbase on port ciphers protocols pki ca tag hostname hostnames senders filter from " +
	"helo helo-src src mail-from mx host domain auth ttl user group chroot timeout on-failure without by-sender"

// modernFirst are the words that a statement can begin with.
var modernFirst = []string{"action", "admd", "bounce", "ca", "filter", "include", "listen",
	"match", "mda", "mta", "pki", "proc", "queue", "resolver", "scheduler", "smtp", "srs", "table"}

// acceptWords are the reserved words of 5.3 to 6.3, those of the present
// language that do no harm there included.
var acceptWords = map[string]int{
	"accept": aACCEPT, "alias": aALIAS, "all": aALL, "any": aANY, "as": aAS, "auth": aAUTH,
	"auth-optional": aAUTHOPTIONAL, "authenticated": aAUTHENTICATED, "backup": aBACKUP,
	"bounce-warn": aBOUNCEWARN, "ca": aCA, "cert": aCERT, "certificate": aCERTIFICATE,
	"ciphers": aCIPHERS, "compression": aCOMPRESSION, "deliver": aDELIVER, "dhe": aDHE,
	"dhparams": aDHPARAMS, "domain": aDOMAIN, "enable": aENABLE, "encryption": aENCRYPTION,
	"enqueuer": aENQUEUER, "expire": aEXPIRE, "filter": aFILTER, "for": aFOR,
	"forward-only": aFORWARDONLY, "from": aFROM, "helo": aHELO, "hostname": aHOSTNAME,
	"hostnames": aHOSTNAMES, "inet4": aINET4, "inet6": aINET6, "key": aKEY, "limit": aLIMIT,
	"listen": aLISTEN, "lmtp": aLMTP, "local": aLOCAL, "maildir": aMAILDIR,
	"mask-source": aMASKSOURCE, "mask-src": aMASKSRC, "masquerade": aMASQUERADE,
	"max-message-size": aMAXMESSAGESIZE, "max-mta-deferred": aMAXMTADEFERRED, "mbox": aMBOX,
	"mda": aMDA, "mta": aMTA, "no-dsn": aNODSN, "on": aON, "pki": aPKI, "port": aPORT,
	"protocols": aPROTOCOLS, "proxy-v2": aPROXYV2, "queue": aQUEUE, "rcpt-to": aRCPTTO,
	"received-auth": aRECEIVEDAUTH, "recipient": aRECIPIENT, "reject": aREJECT,
	"relay": aRELAY, "scheduler": aSCHEDULER, "secure": aSECURE, "sender": aSENDER,
	"senders": aSENDERS, "session": aSESSION, "smtps": aSMTPS, "socket": aSOCKET,
	"source": aSOURCE, "ssl": aSSL, "subaddressing-delimiter": aSUBADDR, "tag": aTAG,
	"tagged": aTAGGED, "tls": aTLS, "tls-require": aTLSREQUIRE, "to": aTO, "ttl": aTTL,
	"userbase": aUSERBASE, "verify": aVERIFY, "via": aVIA, "virtual": aVIRTUAL,
}

// mapWords are the reserved words of 4.6 to 5.2.
var mapWords = map[string]int{
	"accept": pACCEPT, "alias": pALIAS, "all": pALL, "any": pANY, "as": pAS, "auth": pAUTH,
	"auth-optional": pAUTHOPTIONAL, "backup": pBACKUP, "certificate": pCERTIFICATE,
	"compression": pCOMPRESSION, "config": pCONFIG, "db": pDB, "deliver": pDELIVER,
	"dns": pDNS, "domain": pDOMAIN, "enable": pENABLE, "expire": pEXPIRE,
	"external": pEXTERNAL, "file": pFILE, "for": pFOR, "from": pFROM, "hash": pHASH,
	"hostname": pHOSTNAME, "interval": pINTERVAL, "list": pLIST, "listen": pLISTEN,
	"local": pLOCAL, "maildir": pMAILDIR, "map": pMAP, "mbox": pMBOX, "mda": pMDA,
	"network": pNETWORK, "on": pON, "plain": pPLAIN, "port": pPORT, "queue": pQUEUE,
	"reject": pREJECT, "relay": pRELAY, "single": pSINGLE, "size": pSIZE, "smtps": pSMTPS,
	"source": pSOURCE, "ssl": pSSL, "tag": pTAG, "tls": pTLS, "tls-require": pTLSREQUIRE,
	"to": pTO, "type": pTYPE, "user": pUSER, "via": pVIA, "virtual": pVIRTUAL,
}

// wordsOf are the key words of a statement of an older generation, by its first
// word: there a word is reserved only where the statement can ask for it.
var wordsOf = map[string]string{
	"listen": "listen on socket enqueuer inet4 inet6 port tls tls-require verify smtps secure ssl " +
		"certificate pki ca ciphers protocols enable auth auth-optional tag hostname hostnames " +
		"senders masquerade mask-source mask-src received-auth no-dsn proxy-v2 filter",
	"accept": "accept tagged authenticated from any all local source sender recipient for domain " +
		"alias virtual userbase deliver to mbox maildir mda as lmtp rcpt-to relay backup tls " +
		"verify via auth hostname hostnames helo pki ca certificate expire forward-only on map " +
		"network user enable port smtps ssl tag",
	"reject": "reject tagged authenticated from any all local source sender recipient for domain " +
		"alias virtual deliver to mbox maildir mda relay backup via on map network user tls ssl smtps " +
		"enable auth port certificate as tag expire",
	"bounce-warn":             "bounce-warn",
	"subaddressing-delimiter": "subaddressing-delimiter",
	"queue":                   "queue compression encryption key ttl interval",
	"expire":                  "expire",
	"max-message-size":        "max-message-size",
	"max-mta-deferred":        "max-mta-deferred",
	"ciphers":                 "ciphers",
	"limit":                   "limit session mda mta scheduler for domain inet4 inet6",
	"pki":                     "pki cert certificate key dhe ca dhparams",
	"ca":                      "ca cert certificate",
	"map":                     "map source db plain file dns external type single list hash config",
	"hostname":                "hostname",
	"size":                    "size",
	"table":                   "table",
	"include":                 "include",
	"admd":                    "admd",
	"bounce":                  "bounce warn-interval from full-message",
	"mda":                     "mda wrapper limit",
	"mta":                     "mta max-deferred limit for domain inet4 inet6 prefer tls",
	"scheduler":               "scheduler limit",
	"smtp":                    "smtp limit ciphers max-message-size sub-addr-delim",
	"srs":                     "srs key backup ttl",
	"proc":                    "proc user group chroot timeout on-failure",
	"filter": "filter proc proc-exec chain phase match user group chroot timeout on-failure connect helo ehlo auth " +
		"mail-from rcpt-to data commit fcrdns rdns src regex reject disconnect rewrite report junk bypass",
}

var (
	acceptFirst = []string{"accept", "bounce-warn", "ca", "ciphers", "expire", "limit", "listen",
		"max-message-size", "max-mta-deferred", "pki", "queue", "reject", "subaddressing-delimiter"}
	mapFirst = []string{"accept", "expire", "hostname", "listen", "map", "queue", "reject", "size"}
	// sharedFirst begin statements that an older file may take from the present
	// language as they are.
	sharedFirst = []string{"admd", "bounce", "filter", "include", "mda", "mta", "proc",
		"resolver", "scheduler", "smtp", "srs", "table"}
)
